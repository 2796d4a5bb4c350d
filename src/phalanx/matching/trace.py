# SPDX-License-Identifier: Apache-2.0
"""A forward pass that records which dimensions of which tensors run over the same neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Never

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from phalanx.matching.neurons import Label, Labels, Neurons

Rule = Callable[..., None]  # called with the trace, the output of a function, and the function's arguments
_WAY = "write it with layers, activations, pooling, sums and flattening, or leave it out of the matched model"

# functions that hand numbers of a tensor over to Python
_READ = {"bool", "int", "float", "index", "item", "tolist", "numpy", "array", "is_nonzero", "equal", "allclose"}


class Trace(TorchFunctionMode):
    """A mode in which every function of torch that gets one of the model's tensors is followed by its rule.

    Args:
        model: in evaluation mode. Hooks are registered on it, so give a copy.
        rules: one for each function, by the function's name without underscores around it.
    """

    def __init__(self, model: nn.Module, rules: dict[str, Rule]) -> None:
        super().__init__()
        self.neurons = Neurons()
        self.leaves: dict[str, Tensor] = dict(named_tensors(model))
        self.func: Callable[..., Any] = torch.relu  # the function that is running, and below the tensors it got
        self.given: list[Tensor] = []
        self._rules = rules
        self._labels: dict[int, tuple[Tensor, Labels]] = {}  # keeps the tensors alive, so that no id is used twice
        self._traps: dict[int, str] = {}
        self._kind = type(model).__name__
        self._where: list[str] = [""]
        for tensor in self.leaves.values():
            if not self.known(tensor):
                self.note(tensor, tuple(self.neurons.new(size) for size in tensor.shape))
        self._given_by_model = {id(tensor) for tensor in self.leaves.values()}
        self._born = len(self.neurons.sizes)
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda _, args, name=name: self._where.append(name))
            module.register_forward_hook(lambda _, args, out: self._where.__delitem__(-1))

    @property
    def where(self) -> str:
        """The module that is running; the model's class where it is the model itself."""
        return self._where[-1] or self._kind

    def note(self, tensor: Tensor, labels: Iterable[Label | None], trap: str = "") -> None:
        """Records the labels of a tensor; with a trap, any function that gets the tensor fails with this sentence."""
        labels = tuple(labels)
        assert len(labels) == tensor.dim()
        self._labels[id(tensor)] = tensor, labels
        self._traps[id(tensor)] = trap

    def known(self, tensor: Tensor) -> bool:
        """Whether the tensor depends on the network's input or its parameters."""
        return id(tensor) in self._labels

    def labels(self, tensor: Tensor) -> Labels:
        """The labels of a tensor; None for each dimension of a constant."""
        return self._labels[id(tensor)][1] if self.known(tensor) else (None,) * tensor.dim()

    def binds(self, tensor: Tensor, dim: int) -> bool:
        """Whether the order along a dimension matters; it does not in a constant whose entries there are all equal."""
        return self.known(tensor) or not is_even(tensor, dim)

    def tie(self, label: Label | None, tensor: Tensor, dim: int) -> None:
        """Joins a label with the dimension of a tensor that has its size."""
        if self.binds(tensor, dim):
            self.neurons.join(label, self.labels(tensor)[dim])

    def broadcast(self, shape: Sequence[int], tensors: Sequence[Tensor]) -> Labels:
        """The labels of a result of this shape; dimensions of the operands that are aligned get one order."""
        result: list[Label | None] = []
        for dim in range(-len(shape), 0):
            operands = [t for t in tensors if t.dim() >= -dim and t.shape[dim] == shape[dim] and self.binds(t, dim)]
            labels = [self.labels(tensor)[dim] for tensor in operands]
            for label in labels[1:]:
                self.neurons.join(labels[0], label)
            ranked = [
                (label.node >= self._born, isinstance(tensor, nn.Parameter), label)
                for tensor, label in zip(operands, labels, strict=True)
                if label is not None
            ]
            # an activation's label comes first, and a weight's before that of its mask
            result.append(max(ranked, key=lambda rank: rank[:2])[2] if ranked else None)
        return tuple(result)

    def made(self, label: Label | None, part: str = "") -> Label | None:
        """The label of the running module's output: a new node in the order of `label`."""
        if label is None:
            return None
        root = self.neurons.find(label)
        output = self.neurons.new(root.outer * self.neurons.sizes[root.node] * root.inner)
        self.neurons.join(output, label)
        self.neurons.met[output.node] = self.where + part
        return output

    def whole(self, label: Label) -> Label:
        """The same dimension in terms of the smallest neurons that it is known to consist of."""
        root = self.neurons.find(label)
        node = self.neurons.new(self.neurons.sizes[root.node]).node
        self.neurons.join(Label(node), Label(root.node))
        return Label(node, root.outer, root.inner)

    def maker(self, label: Label | None) -> str:
        """The name of the layer that makes the neurons of a dimension; empty if no layer does."""
        root = None if label is None else self.neurons.find(label).node
        return next(
            (name for node, name in self.neurons.met.items() if self.neurons.find(Label(node)).node == root), ""
        )

    def refuse(self, what: str, way: str = _WAY) -> Never:
        """Raises ValueError for an operation that the trace cannot follow."""
        raise ValueError(f"the graph of {self._kind} ends at {self.where}: {what}; {way}")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.func, self.given, name = func, list(tensors_in((args, kwargs))), name_of(func)
        outputs = list(tensors_in(out))
        if name.strip("_") in _READ and any(self.known(t) and id(t) not in self._given_by_model for t in self.given):
            way = "let it do the same for all inputs, or leave this part out of the matched model"
            self.refuse(f"{name} reads numbers of a tensor, on which the forward may branch", way)
        touched = any(map(self.known, self.given)) and (outputs or name == "__setitem__")
        if not touched or name.startswith("new_") or name.endswith("_like"):
            return out  # a constant, or no tensor
        for tensor in self.given:
            if self._traps.get(id(tensor)):
                self.refuse(self._traps[id(tensor)])
        if any(label for tensor in self.given for label in self.labels(tensor)):
            rule = self._rules.get(name.strip("_"))
            if rule is None:
                self.refuse(f"{name} is no function that is known to treat neurons alike")
            rule(self, out, *args, **kwargs)
        else:
            for tensor in outputs:
                self.note(tensor, [None] * tensor.dim())
        return out


def name_of(func: Callable[..., Any]) -> str:
    """The name of a function, or of the attribute that it reads."""
    owner = getattr(func, "__self__", None)
    return owner.__name__ if func.__name__ == "__get__" and owner is not None else func.__name__


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of floating point; a tensor with two names comes twice."""
    for named in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        yield from ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """The tensors of nested tuples, lists and dictionaries."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, tuple | list | dict):
        for item in arguments.values() if isinstance(arguments, dict) else arguments:
            yield from tensors_in(item)


def is_even(tensor: Tensor, dim: int) -> bool:
    """Whether all entries along a dimension are equal, so that their order does not matter."""
    return tensor.shape[dim] == 0 or torch.equal(tensor, tensor.narrow(dim, 0, 1).expand_as(tensor))

# SPDX-License-Identifier: Apache-2.0
"""The groups of neurons of a network that may change places together, and networks with other groups."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from phalanx.core.module_tensors import replace_tensors
from phalanx.matching.neuron_axes import OUTPUTS, Axes, Axis, scatter
from phalanx.matching.neurons import Label
from phalanx.matching.symmetry import check
from phalanx.matching.trace import Trace, is_even, named_tensors, tensors_in
from phalanx.matching.trace_rules import RULES


@dataclass(frozen=True)
class Graph:
    """The groups of neurons of a network. The order of neurons in a group does not change the output.

    Args:
        axes: the neuron axes of every parameter and floating-point buffer in the model's state, by name; () for none.
        names: a name for each group, that of the module which makes its neurons first.
        sizes: neurons of each group.
        unsaved: as axes, for the buffers that are not in the state.
        level: sets of groups that must have one size, such as the layers of one nn.LSTM.
    """

    axes: Mapping[str, Axes]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    unsaved: Mapping[str, Axes]
    level: tuple[frozenset[int], ...] = ()

    def levelled(self, sizes: Mapping[int, int]) -> dict[int, int]:
        """The given sizes, the present ones of other groups, and one size for groups that must have the same."""
        all_sizes = dict(enumerate(self.sizes)) | dict(sizes)
        for groups in self.level:
            all_sizes |= dict.fromkeys(groups, max(all_sizes[group] for group in groups))
        return all_sizes

    @staticmethod
    def of(model: nn.Module, example: Tensor) -> Graph:
        """The graph of a model, found by one forward pass of a copy in evaluation and checked with random weights.

        It follows linear layers, convolutions, embeddings, LSTM, GRU and RNN, normalizations, activations, pooling,
        flattening and reshaping, sums and other pointwise functions, as modules or as functions, in any Python code.
        Neurons that are added to others are in the same group. Neurons whose order cannot be chosen are in no group,
        for example neurons that are added to the network's input. The outputs are the group OUTPUTS; if a model
        returns several tensors, the first one counts.

        Args:
            example: a small batch of inputs.
        Raises:
            ValueError: the model cannot take the example, or it calls an operation that may treat neurons differently;
                the sentence names it and the way out.
        """
        copied = copy.deepcopy(model).eval()
        trace = Trace(copied, RULES)
        trace.note(example, [None] * example.dim())
        device = [example.device] if example.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(devices=device):
            kind = type(model).__name__
            try:
                with trace:
                    out = copied(example)
            except RuntimeError as error:
                shape = tuple(example.shape)
                raise ValueError(
                    f"{kind} cannot take an example of shape {shape} ({error}); give one that fits"
                ) from error
            output = next(tensors_in(out), None)
            if output is None or not trace.known(output):
                raise ValueError(f"the outputs of {kind} do not come from its input; let it return a tensor that does")
            trace.neurons.put_out.update(label.node for label in trace.labels(output) if label is not None)
            graph = _resolved(trace, set(model.state_dict()))
            check(model, graph.axes, graph.names, graph.sizes, example)
        return graph


def permuted(
    state: Mapping[str, Tensor], graph: Graph, places: Mapping[int, Tensor], sizes: Mapping[int, int] | None = None
) -> dict[str, Tensor]:
    """A model's state with the neurons of some groups at other places, along every axis that they have.

    Args:
        places: for each group the new places: neuron l of the state becomes neuron places[l] of the result.
        sizes: of the groups in the result, where a place that no neuron takes is zero; by default as in `places`.
    """
    sizes = sizes or {}
    permuted_state = dict(state)
    for name, tensor in state.items():
        for group, positions in places.items():
            axes = graph.axes.get(name, ())
            tensor = scatter(tensor, axes, group, positions, sizes.get(group, len(positions)))
        permuted_state[name] = tensor
    return permuted_state


def resized(model: nn.Module, graph: Graph, sizes: Mapping[int, int]) -> nn.Module:
    """A copy of a model whose groups have these sizes: the first neurons are the model's, the others are zero.

    Args:
        sizes: neurons of each group that changes, >= 1.
    Raises:
        ValueError: a size is below 1, belongs to a group that the graph does not have, or differs from that of a group
            which must be as large.
    """
    for group, size in sizes.items():
        if not 0 <= group < len(graph.sizes) or size < 1:
            raise ValueError(f"groups 0 to {len(graph.sizes) - 1} can have sizes >= 1, got {size} for group {group}")
    uneven = [group for group, size in graph.levelled(sizes).items() if size != sizes.get(group, graph.sizes[group])]
    if uneven:
        names = ", ".join(graph.names[group] for group in uneven)
        raise ValueError(f"{names} must be as large as the layers beside them; give graph.levelled(sizes)")
    copied = copy.deepcopy(model)
    axes = {**graph.axes, **graph.unsaved}
    old = {name: t for name, t in named_tensors(copied) if any(axis.group in sizes for axis in axes[name])}
    replace_tensors(copied, {name: _fitted(tensor.detach(), axes[name], sizes) for name, tensor in old.items()})
    return copied


def _fitted(tensor: Tensor, axes: Axes, sizes: Mapping[int, int]) -> Tensor:
    """The first neurons of a tensor along each axis, and zeros up to the new size."""
    for axis in axes:
        if axis.group in sizes:
            first = torch.arange(min(sizes[axis.group], axis.neurons(tensor)))
            tensor = axis.scatter(axis.pick(tensor, first), first, sizes[axis.group])
    return tensor


def _resolved(trace: Trace, saved: set[str]) -> Graph:
    neurons = trace.neurons
    for name, tensor in trace.leaves.items():
        if name not in saved:
            # a buffer that is not saved would keep its order
            for dim, label in enumerate(trace.labels(tensor)):
                if not is_even(tensor, dim):
                    neurons.join(label, None)
    order = list(neurons.met)
    free: list[tuple[int, int]] = []  # position of the layer that makes the neurons first, and the node
    outputs: set[int] = set()
    for root, members in neurons.members():
        met = [order.index(node) for node in members if node in neurons.met]
        if met and members & neurons.put_out and not members & neurons.contracted:
            outputs.add(root)
        elif met and not members & (neurons.fixed | neurons.put_out):
            free.append((min(met), root))
    free.sort()
    groups = {root: group for group, (_, root) in enumerate(free)} | dict.fromkeys(outputs, OUTPUTS)

    def group_of(node: int) -> int:
        return groups.get(neurons.find(Label(node)).node, OUTPUTS)

    levels = (frozenset(map(group_of, nodes)) - {OUTPUTS} for nodes in neurons.level)

    def axes_of(tensor: Tensor) -> Iterator[Axis]:
        for dim, label in enumerate(trace.labels(tensor)):
            assert label is not None
            root = neurons.find(label)
            if root.node in groups:
                makes = label.node not in neurons.contracted or label.node in neurons.looked_up
                yield Axis(dim, groups[root.node], root.outer, root.inner, makes)

    axes = {name: tuple(axes_of(tensor)) for name, tensor in trace.leaves.items()}
    return Graph(
        {name: tensor_axes for name, tensor_axes in axes.items() if name in saved},
        tuple(neurons.met[order[first]] for first, _ in free),
        tuple(neurons.sizes[root] for _, root in free),
        {name: tensor_axes for name, tensor_axes in axes.items() if name not in saved},
        tuple(level for level in levels if len(level) > 1),
    )

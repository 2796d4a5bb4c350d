# SPDX-License-Identifier: Apache-2.0
"""Multiply-accumulate operations of a forward pass, layer by layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Count = Callable[[Any, tuple[Any, ...], Any], int]  # (layer, inputs, output) -> multiply-accumulates


@dataclass(frozen=True)
class LayerMacs:
    """Multiply-accumulates of one layer in a pass, over all its calls.

    Args:
        name: name of the module in the model; empty if it is the model itself.
        kind: name of its class.
        macs: number of multiply-accumulates.
    """

    name: str
    kind: str
    macs: int


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of a model in a pass, for each layer that was called, in the model's order."""

    layers: tuple[LayerMacs, ...]

    @property
    def total(self) -> int:
        """The multiply-accumulates of all layers."""
        return sum(layer.macs for layer in self.layers)

    def __getitem__(self, name: str) -> int:
        """The multiply-accumulates of the layer of this name and all layers inside; 0 if none was called."""
        inside = f"{name}." if name else ""
        return sum(layer.macs for layer in self.layers if layer.name == name or layer.name.startswith(inside))


@torch.no_grad()
def macs(model: nn.Module, *inputs: Any) -> Macs:
    """Multiply-accumulate operations of `model(*inputs)` in its present mode, counted at its layers.

    It counts linear layers, convolutions, recurrent layers, nn.MultiheadAttention with its two products, the experts of
    a mixture, each for the vectors that are routed to it, and every module with a method `macs(inputs, output)`, which
    also counts for the modules inside. It does not count operations that are no product of matrices (normalization,
    activations, pooling, look-ups of word vectors), biases, and products outside of these modules, such as those of an
    attention in a plain function. A model in training mode updates its BatchNorm statistics as in any pass.

    >>> macs(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.zeros(5, 3)).total
    100
    """
    names = list(_counted(model, ""))
    totals = dict.fromkeys((name for name, *_ in names), 0)
    called: set[str] = set()

    def watch(name: str, count: Count) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            called.add(name)
            totals[name] += count(layer, inspect.signature(layer.forward).bind(*args, **kwargs).args, output)

        return hook

    hooks = [layer.register_forward_hook(watch(name, count), with_kwargs=True) for name, layer, count in names]
    try:
        model(*inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return Macs(tuple(LayerMacs(n, type(layer).__name__, totals[n]) for n, layer, _ in names if n in called))


def _counted(
    model: nn.Module, prefix: str, visited: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module, Count]]:
    """The outermost modules that can be counted; a shared module appears once."""
    visited = set() if visited is None else visited
    if model in visited:
        return
    visited.add(model)
    count = _count_of(model)
    if count is not None:
        yield prefix, model, count
        return
    for name, child in model.named_children():
        yield from _counted(child, f"{prefix}.{name}" if prefix else name, visited)


def _count_of(layer: nn.Module) -> Count | None:
    own_count = getattr(layer, "macs", None)
    if callable(own_count):
        return lambda _, inputs, output: int(own_count(inputs, output))  # type: ignore[call-overload]
    for kinds, count in _COUNTS:
        if isinstance(layer, kinds):
            return count
    # Hugging Face's GPT-2 has linear layers of its own, whose weight is (in, out)
    if type(layer).__name__ == "Conv1D" and isinstance(getattr(layer, "weight", None), Tensor):
        return lambda layer, _, output: output.numel() * layer.weight.shape[0]
    return _experts if expert_weights(layer) else None


def expert_weights(layer: nn.Module) -> dict[str, Tensor]:
    """The weights of experts that a layer holds in tensors of (experts, m, n); empty if it has not two of them."""
    own: dict[str, Tensor] = {
        name: p for name, p in layer.named_parameters(recurse=False) if p.dim() == 3 and p.shape[0] > 1
    }
    return own if len(own) > 1 and len({p.shape[0] for p in own.values()}) == 1 else {}


def expert_vectors(inputs: Any) -> int:
    """The number of vectors that meet an expert: one for each index that the router gives, or each vector if none."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    routed = [x.numel() for x in tensors if not x.is_floating_point()]
    return routed[0] if routed else math.prod(tensors[0].shape[:-1])


def _experts(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    return expert_vectors(inputs) * sum(math.prod(weight.shape[1:]) for weight in expert_weights(layer).values())


def _linear(layer: nn.Linear, inputs: tuple[Any, ...], output: Any) -> int:
    return output.numel() * layer.in_features


def _convolution(layer: Any, inputs: tuple[Any, ...], output: Any) -> int:
    return output.numel() * layer.weight[0].numel()


def _transposed(layer: Any, inputs: tuple[Any, ...], output: Any) -> int:
    return inputs[0].numel() * layer.weight[0].numel()


def _recurrent(layer: nn.RNNBase, inputs: tuple[Any, ...], output: Any) -> int:
    """Every matrix once for each word; element-wise products of the gates do not count."""
    return words_of(inputs[0]) * sum(w.numel() for weights in layer.all_weights for w in weights if w.dim() == 2)


def words_of(x: Any) -> int:
    """The number of vectors in (..., width), or in a packed sequence of vectors."""
    return len(x.data) if isinstance(x, nn.utils.rnn.PackedSequence) else math.prod(x.shape[:-1])


def _cell(layer: nn.RNNCellBase, inputs: tuple[Any, ...], output: Any) -> int:
    return math.prod(inputs[0].shape[:-1]) * (layer.weight_ih.numel() + layer.weight_hh.numel())


def _attention(layer: nn.MultiheadAttention, inputs: tuple[Any, ...], output: Any) -> int:
    """Four projections and two products; positions that a mask hides count too."""
    query, key = inputs[:2]
    width = layer.embed_dim
    projections = 2 * words_of(query) * width**2 + words_of(key) * width * (layer.kdim + layer.vdim)
    return projections + attention_products(layer, query, key)


def attention_products(layer: Any, query: Tensor, key: Tensor) -> int:
    """The products for the scores and for the sums of values, in `nn.MultiheadAttention` or a layer with its fields."""
    batch = query.shape[0 if layer.batch_first else 1] if query.dim() == 3 else 1
    more = (layer.bias_k is not None) + layer.add_zero_attn
    return 2 * words_of(query) * (words_of(key) // batch + more) * layer.embed_dim


_COUNTS: tuple[tuple[Any, Count], ...] = (
    (nn.Linear, _linear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
    (nn.MultiheadAttention, _attention),
)

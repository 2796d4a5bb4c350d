# SPDX-License-Identifier: Apache-2.0
"""Which axes of a tensor run over the neurons of a layer, and tensors with their neurons in another order."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

OUTPUTS = -1  # the group of what a network puts out, such as classes: it has an order of its own


@dataclass(frozen=True)
class Axis:
    """A dimension that runs over the neurons of a group: outer blocks, in each the L neurons, of each inner entries.

    Its size is outer * L * inner.

    Args:
        dim: of the tensor, >= 0.
        group: neurons that must be in one order together, numbered from 0 as the forward pass meets them; OUTPUTS.
        outer: blocks that repeat the neurons, such as the four gates of an LSTM.
        inner: entries of one neuron side by side, such as the pixels of a flattened channel.
        makes: the neurons come out of the tensor along it; they go in where False.
    """

    dim: int
    group: int
    outer: int = 1
    inner: int = 1
    makes: bool = True

    def neurons(self, tensor: Tensor) -> int:
        """The number L of neurons of a tensor."""
        return tensor.shape[self.dim] // (self.outer * self.inner)

    def neurons_first(self, tensor: Tensor) -> Tensor:
        """The tensor as a row for each neuron. Shapes: -> (L, D)."""
        return self._unfolded(tensor).movedim(self.dim + 1, 0).reshape(self.neurons(tensor), -1)

    def neurons_back(self, rows: Tensor, like: Tensor) -> Tensor:
        """The inverse of `neurons_first`, for a tensor of a shape. Shapes: (L, D) -> like."""
        wide = self._unfolded(like)
        shape = [wide.shape[self.dim + 1], *(s for dim, s in enumerate(wide.shape) if dim != self.dim + 1)]
        return self._folded(rows.reshape(shape).movedim(0, self.dim + 1))

    def pick(self, tensor: Tensor, places: Tensor) -> Tensor:
        """A tensor of the neurons at these places: number l of the result is number places[l] of the given one."""
        return self._folded(self._unfolded(tensor).index_select(self.dim + 1, places.to(tensor.device)))

    def scatter(self, tensor: Tensor, places: Tensor, size: int) -> Tensor:
        """A tensor of `size` neurons, zeros but for those given: number places[l] of the result is number l.

        Neurons whose place is -1 are dropped.
        """
        wide, places = self._unfolded(tensor), places.to(tensor.device)
        if bool((places < 0).any()):
            kept = (places >= 0).nonzero().flatten()
            wide, places = wide.index_select(self.dim + 1, kept), places[kept]
        shape = list(wide.shape)
        shape[self.dim + 1] = size
        return self._folded(wide.new_zeros(shape).index_copy_(self.dim + 1, places, wide))

    def _unfolded(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(self.dim, (self.outer, self.neurons(tensor), self.inner))

    def _folded(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(self.dim, self.dim + 2)


Axes = tuple[Axis, ...]  # of one tensor


def scatter(tensor: Tensor, axes: Axes, group: int, places: Tensor, size: int) -> Tensor:
    """The tensor with the neurons of one group at their places among `size`, along every axis that has them."""
    for axis in axes:
        if axis.group == group:
            tensor = axis.scatter(tensor, places, size)
    return tensor


def take(tensor: Tensor, axes: Axes, group: int, places: Tensor) -> Tensor:
    """The tensor of those neurons of one group that stand at these places, along every axis that has them."""
    for axis in axes:
        if axis.group == group:
            tensor = axis.pick(tensor, places)
    return tensor

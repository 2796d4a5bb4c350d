# SPDX-License-Identifier: Apache-2.0
"""The matrices of a weight, and the shapes of the two factors of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Split = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # (copies, rows, columns), rank -> v, u


@dataclass(frozen=True)
class Factor:
    """A weight of a layer, or some of its rows, as `copies` matrices W = v u, one for each gate or group.

    Shapes: W (copies, rows, columns); u (copies * rank, *shape[1:]); v (copies * rows, rank, 1, ...).
    Args:
        name: name of the entry in a plan, within the layer; "" if the layer has only one weight.
        weight: name of the dense parameter in the dense layer.
        shape: shape of the weight (out, in, ...), or of those of its rows that belong to this factor.
        u, v: names of the factors in the low-rank layer.
        copies: number of matrices that are stacked along the first dimension.
        start: first of these rows in the dense parameter.
        transposed: whether the dense parameter is stored as (in, out).
        layer: name of the layer within a module of several layers, which the option `first` of a plan counts.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    u: str = "u"
    v: str = "v"
    copies: int = 1
    start: int = 0
    transposed: bool = False
    layer: str = ""

    @property
    def rows(self) -> int:
        """The number of outputs of one matrix."""
        return self.shape[0] // self.copies

    @property
    def columns(self) -> int:
        """The number of inputs of one matrix; those of a convolution are unrolled over its kernel."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """The number of parameters of the dense matrices."""
        return math.prod(self.shape)

    def size_at(self, rank: int) -> int:
        """The number of parameters of the factors at a rank."""
        return self.copies * rank * (self.rows + self.columns)

    def rank_at(self, ratio: float) -> int:
        """The rank for a ratio: max(1, floor(min(rows, columns) ratio))."""
        return max(1, int(min(self.rows, self.columns) * ratio))

    def u_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of the parameter u."""
        return (self.copies * rank, *self.shape[1:])

    def v_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of the parameter v."""
        return (self.shape[0], rank, *(1 for _ in self.shape[2:]))

    def matrices(self, weight: Tensor) -> Tensor:
        """The dense parameter as (copies, rows, columns)."""
        part = weight.mT if self.transposed else weight[self.start : self.start + self.shape[0]]
        return part.reshape(self.copies, self.rows, self.columns)

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        """The product of the factors in the shape of the dense parameter; differentiable."""
        left, right = self.thin(u, v)
        dense = (left @ right).reshape(self.shape)
        return dense.mT if self.transposed else dense

    def thin(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both factors as matrices, v first. Shapes: -> (copies, rows, rank), (copies, rank, columns)."""
        rank = v.shape[1]
        return v.reshape(self.copies, self.rows, rank), u.reshape(self.copies, rank, self.columns)

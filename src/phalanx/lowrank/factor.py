# SPDX-License-Identifier: Apache-2.0
"""How a weight is read as matrices, and what the two factors of each look like."""

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
        name: of the row in a plan, within the layer; "" where the layer has one weight only.
        weight: the dense parameter, by its name in the dense layer.
        shape: of the weight (out, in, ...), or of the rows that this factor stands for.
        u, v: the names of the factors in the low-rank layer.
        copies: matrices that are stacked along the first dimension.
        start: the first of these rows in the dense parameter.
        transposed: the dense parameter is stored (in, out).
        layer: within the module, where that is several layers; the rule of the first K counts them.
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
        """Outputs of one matrix."""
        return self.shape[0] // self.copies

    @property
    def columns(self) -> int:
        """Inputs of one matrix; a convolution's are unrolled over its kernel."""
        return math.prod(self.shape[1:])

    @property
    def size(self) -> int:
        """Parameters of the dense matrices."""
        return math.prod(self.shape)

    def size_at(self, rank: int) -> int:
        """Parameters of the factors."""
        return self.copies * rank * (self.rows + self.columns)

    def rank_at(self, ratio: float) -> int:
        """The rank that a ratio means: max(1, floor(min(rows, columns) ratio))."""
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
        """What the factors stand for, in the dense parameter's own shape; differentiable."""
        left, right = self.thin(u, v)
        dense = (left @ right).reshape(self.shape)
        return dense.mT if self.transposed else dense

    def thin(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Both parameters as matrices, v first. Shapes: -> (copies, rows, rank), (copies, rank, columns)."""
        rank = v.shape[1]
        return v.reshape(self.copies, self.rows, rank), u.reshape(self.copies, rank, self.columns)

# SPDX-License-Identifier: Apache-2.0
"""A transform that scales rows down to a norm."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Rng, Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Kept, RowStage, Scope
from phalanx.core.trees import State


@method("clip", "transform")
class Clip(RowStage):
    """Each row scaled down to an l2 norm of at most `norm`: x * min(1, norm / ||x||).

    Shapes: (k, d) -> (k, d).
    Args:
        norm: > 0; a lower one limits the harm of one row more, and biases honest rows more.
    Source: Pascanu et al., On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063, Algorithm 1.
    """

    norm: float

    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    @property
    def keeps(self) -> Kept:
        return "equality"

    def validate(self) -> None:
        require(0 < self.norm < float("inf"), f"clip needs a finite norm > 0, got norm={self.norm}")

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        if stack.columns is None:
            return super().__call__(stack, state, round)
        cut, norms = stack.layout.stepped, stack.directions.norms()
        rows = stack.rows.clone()
        wide = rows[:, :cut].to(accumulation_dtype(rows.dtype))
        rows[:, :cut] = (wide * (self.norm / norms.clamp(min=self.norm)).unsqueeze(1)).to(rows.dtype)
        return stack.with_rows(rows), dict(state or {})

    def row(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Tensor, State]:
        # the squares of a float32 row may overflow, and a float16 factor has few digits left when it is small
        length = torch.linalg.vector_norm(row, dtype=torch.float64)
        return (row.to(accumulation_dtype(row.dtype)) * (self.norm / length.clamp(min=self.norm))).to(row.dtype), state

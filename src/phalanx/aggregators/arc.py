# SPDX-License-Identifier: Apache-2.0
"""A preparation for a rule: the longest rows are cut to the length of the longest that stays as it is."""

from __future__ import annotations

from typing import ClassVar

import torch

from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("arc", "aggregator")
class Arc(Aggregator):
    """Adaptive robust clipping: the k = floor(2 f (n - f) / n) longest rows are scaled to the norm of the next one.

    The norm is that of a row's directions; installed values, such as BatchNorm statistics, stay as they are.

    Shapes: (n, d) -> (n, d), n > 2f.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n <= 2f.
    Source: Allouah et al., Adaptive gradient clipping for robust federated learning, 2024, arXiv:2405.14432,
        Algorithm 2. As published.
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"arc needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def merges(self, n: int) -> int:
        return n

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n, num_directions = len(stack.rows), stack.layout.stepped
        num_clipped = 2 * f * (n - f) // n
        directions = stack.rows[:, :num_directions]
        norms = stack.directions.norms()
        limit = norms.sort(descending=True).values[num_clipped]
        rows = stack.rows.clone()
        for i in torch.nonzero(norms > limit).flatten().tolist():
            scaled = directions[i].to(accumulation_dtype(rows.dtype)) * float(limit / norms[i])
            rows[i, :num_directions] = scaled.to(rows.dtype)
        return stack.with_rows(rows, gated=True), {}

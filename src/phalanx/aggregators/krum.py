# SPDX-License-Identifier: Apache-2.0
"""A rule that returns the one row with the nearest neighbours."""

from __future__ import annotations

from typing import ClassVar

from phalanx.aggregators.kernels.selection import krum_ranking
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("krum", "aggregator")
class Krum(Aggregator):
    """The row with the smallest sum of squared distances to its n - f - 2 nearest others. Weights are ignored.

    Shapes: (n, d) -> (1, d), n >= 2f + 3.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n < 2f + 3.
    Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017,
        arXiv:1703.02757, section 4. As published.
    """

    f: int

    requirement: ClassVar[str] = "n >= 2f + 3"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"krum needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 3

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        best = krum_ranking(stack, len(stack.rows) - f - 2)[0]
        chosen = [Note("chosen", worker) for worker in stack.sources[best]]
        return stack.one(stack.rows[best].clone()).note(chosen), {}

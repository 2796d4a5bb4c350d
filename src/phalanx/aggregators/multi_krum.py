# SPDX-License-Identifier: Apache-2.0
"""A rule that averages the rows with the nearest neighbours."""

from __future__ import annotations

from typing import ClassVar

import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.selection import krum_ranking
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("multi_krum", "aggregator")
class MultiKrum(Aggregator):
    """The plain mean of the m rows with the smallest sums of squared distances to their n - f - 2 nearest others.

    Shapes: (n, d) -> (1, d), n >= 2f + 3 and n >= m.
    Args:
        f: number of Byzantine rows to tolerate.
        m: number of rows to average, >= 1; a larger m is less noisy and less safe. None takes n - f - 2.
    Raises:
        ValueError: n < 2f + 3 or n < m.
    Source: Blanchard et al., Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent, 2017,
        arXiv:1703.02757, section 5.
    Differs: the paper leaves m open; the default is that of the code published with Rajput et al., DETOX, 2019,
        arXiv:1907.12205.
    """

    f: int
    m: int | None = None

    requirement: ClassVar[str] = "n >= 2f + 3 and n >= m"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"multi_krum needs f >= 0, got f={self.f}")
        require(self.m is None or self.m >= 1, f"multi_krum needs m >= 1, got m={self.m}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return max(2 * f + 3, self.m or 1)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = len(stack.rows)
        m = self.m or n - f - 2
        share = torch.zeros(n, dtype=torch.float64)
        best = krum_ranking(stack, n - f - 2)[:m]
        share[best] = 1 / m
        chosen = [Note("chosen", worker) for i in best for worker in stack.sources[i]]
        return stack.one(mix_one(share, stack.rows)).note(chosen), {}

# SPDX-License-Identifier: Apache-2.0
"""A rule that takes the median of every coordinate."""

from __future__ import annotations

from typing import ClassVar

from phalanx.aggregators.kernels.order import median
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("median", "aggregator")
class Median(Aggregator):
    """The coordinate-wise median; for even n the mean of the two middle values. Weights are ignored.

    Shapes: (n, d) -> (1, d).
    Source: Yin et al., Byzantine-Robust Distributed Learning, 2018, arXiv:1803.01498, Definition 1. As published.
    """

    requirement: ClassVar[str] = "n > 2f"

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        return stack.one(median(stack.rows)), {}

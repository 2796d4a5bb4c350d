# SPDX-License-Identifier: Apache-2.0
"""A rule that averages every coordinate without its extreme values."""

from __future__ import annotations

import math
from typing import ClassVar

from phalanx.aggregators.kernels.order import middle_mean
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("trimmed_mean", "aggregator")
class TrimmedMean(Aggregator):
    """The coordinate-wise mean without the f largest and the f smallest values. Weights are ignored.

    Shapes: (n, d) -> (1, d), n > 2f.
    Args:
        f: number of Byzantine rows to tolerate; a larger f is safer and noisier. Give either f or ratio.
        ratio: f as a share of n in [0, 0.5), rounded down.
    Raises:
        ValueError: both or neither of f and ratio are given, or n <= 2f.
    Source: Yin et al., Byzantine-Robust Distributed Learning, 2018, arXiv:1803.01498, Definition 2. As published.
    """

    f: int | None = None
    ratio: float | None = None

    requirement: ClassVar[str] = "n > 2f"

    def validate(self) -> None:
        require(
            (self.f is None) != (self.ratio is None),
            f"trimmed_mean takes either f or ratio, got f={self.f}, ratio={self.ratio}",
        )
        require(self.f is None or self.f >= 0, f"trimmed_mean needs f >= 0, got f={self.f}")
        require(
            self.ratio is None or 0 <= self.ratio < 0.5,
            f"trimmed_mean needs ratio in [0, 0.5), got ratio={self.ratio}",
        )

    def tolerates(self, n: int) -> int:
        if self.ratio is None:
            return self.f or 0
        # 0.29 * 100 is 28.999999999999996
        return math.floor(self.ratio * n + 1e-9)

    def least(self, f: int) -> int:
        return 2 * f + 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        return stack.one(middle_mean(stack.rows, f, len(stack.rows) - f)), {}

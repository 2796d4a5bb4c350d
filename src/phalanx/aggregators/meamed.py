# SPDX-License-Identifier: Apache-2.0
"""A rule that averages, in every coordinate, the values near the median."""

from __future__ import annotations

from typing import ClassVar

from phalanx.aggregators.kernels.order import central_mean
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("meamed", "aggregator")
class Meamed(Aggregator):
    """The mean of the n - f values of each coordinate that are nearest to its median; the lower one in a tie.

    Weights are ignored.

    Shapes: (n, d) -> (1, d), n > 2f.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n <= 2f.
    Source: Xie et al., Generalized Byzantine-tolerant SGD, 2018, arXiv:1802.10116, Definition 7 (mean around median).
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"

    def validate(self) -> None:
        require(self.f >= 0, f"meamed needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        return stack.one(central_mean(stack.rows, len(stack.rows) - f)), {}

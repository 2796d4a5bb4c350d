# SPDX-License-Identifier: Apache-2.0
"""A rule that chooses rows by Krum, then in each coordinate values near the median."""

from __future__ import annotations

from typing import ClassVar

from phalanx.aggregators.kernels.order import central_mean, middle_mean
from phalanx.aggregators.kernels.selection import krum_choices, krum_ranking
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("bulyan", "aggregator")
class Bulyan(Aggregator):
    """The mean of the theta - 2f values nearest the median of theta = n - 2f rows, which Krum chooses one by one.

    Each choice of Krum is among the r rows that are left, by their max(1, r - f - 2) nearest others; in a tie it takes
    the row with the smaller first value. Weights are ignored.

    Shapes: (n, d) -> (1, d), n >= 4f + 3.
    Args:
        f: number of Byzantine rows to tolerate.
        one_shot: True ranks all rows by Krum once, keeps theta = n - f - 2 of them, and averages the theta - 2f middle
            values of each coordinate. So does the code published with Wang, Toward Robust and Communication Efficient
            Distributed Machine Learning, 2021.
    Raises:
        ValueError: n < 4f + 3.
    Source: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, 2018, arXiv:1802.07927,
        section 4.
    Differs: the paper does not say what Krum does when fewer than f + 3 rows are left; here it looks at one neighbour.
    """

    f: int
    one_shot: bool = False

    requirement: ClassVar[str] = "n >= 4f + 3"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"bulyan needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 4 * f + 3

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = len(stack.rows)
        if self.one_shot:
            theta = n - f - 2
            chosen = krum_ranking(stack, n - f - 2)[:theta]
            return stack.one(middle_mean(stack.rows, f, theta - f, sorted(chosen.tolist()))), {}
        theta = n - 2 * f
        chosen = krum_choices(stack, f, theta)
        return stack.one(central_mean(stack.rows, theta - 2 * f, sorted(chosen.tolist()))), {}

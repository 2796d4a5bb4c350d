# SPDX-License-Identifier: Apache-2.0
"""Rows chosen by Krum, then values chosen near the median."""

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

    Krum chooses among the rows that are left, by their max(1, left - f - 2) nearest others; in a tie the row with the
    smaller first value. Weights are ignored.

    Shapes: (n, d) -> (1, d), n >= 4f + 3.
    Args:
        f: rows to tolerate.
        one_shot: rank all rows by Krum once and keep theta = n - f - 2; of each coordinate average the theta - 2f
            middle values. This is the code published with Wang, Toward Robust and Communication Efficient Distributed
            Machine Learning, 2021; it reads Krum's scores once and averages fewer values from among more rows.
    Raises:
        ValueError: n < 4f + 3.
    Source: El Mhamdi et al., The Hidden Vulnerability of Distributed Learning in Byzantium, 2018, arXiv:1802.07927,
        section 4.
    Differs: the paper does not say what Krum does when fewer than f + 3 rows are left; here it looks at one neighbour.
    """

    f: int
    one_shot: bool = False

    requirement: ClassVar[str] = "n >= 4f + 3"

    @property
    def scope(self) -> Scope:
        return "vector"

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

# SPDX-License-Identifier: Apache-2.0
"""Every group of workers computes the same; the majority is what it computed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.coding.code import Code, TooManyFaults
from phalanx.coding.group_vote import GroupVote
from phalanx.coding.majority_vote import Redundant
from phalanx.coding.placement import Placement, RandomOrder
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State


@method("repetition", "aggregator")
class Repetition(Redundant, Code):
    """The mean of all units, each by majority in its group of r workers; bit for bit what honest workers give.

    The n workers form n // r groups whose sizes differ by one at most. A group of g workers recovers from l lies and e
    erasures while 2 l + e <= g - 1. All units count the same, whatever weights the workers claim.

    Erasures and notes are those of `group_vote`.

    Shapes: (n, d) -> (1, d), n >= r.
    Args:
        r: workers in a group, odd; 2 s + 1 stands s lies anywhere.
        placement: which workers share a group.
    Raises:
        TooManyFaults: a group without a majority, or without anybody.
        ValueError: n < r, or an even r.
    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877, section 4.1. Differs: r need not divide n; groups without a majority are found out.
        `chain(vote(codec, r), mean())` is the same code with a third of the traffic.
    """

    requirement: ClassVar[str] = "n >= r"

    r: int
    placement: Placement = RandomOrder()

    @property
    def needs(self) -> Kept:
        return "equality"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.r >= 1 and self.r % 2 == 1, f"repetition needs an odd r >= 1, got r={self.r}")

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def tolerances(self, n: int) -> tuple[int, ...]:
        """The number of false rows that each group tolerates."""
        return tuple((len(group) - 1) // 2 for group in even_groups(n, self.num_groups(n)))

    def merges(self, n: int) -> int:
        self.num_groups(n)
        return 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        voted, _ = GroupVote(self.r, "exclude", placement=self.placement).combine(stack, f, None, round)
        decided = voted.units or ()
        if voted.erased:
            lost = sorted(set(range(len(decided) + voted.erased)) - set(decided))
            raise TooManyFaults(
                f"repetition(r={self.r}): no majority in group {', '.join(map(str, lost))}", voted.notes
            )
        # equal shares: the gate bounds weights by their median, which a lie or a missing row can move
        share = torch.full((len(decided),), 1 / len(decided), dtype=torch.float64)
        one = voted.one(mix_one(share, voted.rows))
        return replace(one, erased=0), {}

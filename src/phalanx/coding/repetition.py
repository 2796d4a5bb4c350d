# SPDX-License-Identifier: Apache-2.0
"""Every group of workers computes the same; the majority is what it computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import ClassVar

import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.coding.code import Code, TooManyFaults
from phalanx.coding.group_vote import GroupVote
from phalanx.coding.majority_vote import vote_allocation, vote_groups
from phalanx.core.allocation import Allocation
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("repetition", "aggregator")
class Repetition(Code):
    """The mean of all units, each by majority in its group of r workers; bit for bit what honest workers give.

    The n workers form n // r contiguous groups whose sizes differ by one at most. A group of g workers recovers from l
    lies and e missing rows while 2 l + e <= g - 1. All units count the same, whatever weights the workers claim.

    Notes: those of `group_vote`, and "unprotected" with the number of groups where, of those that are present, a single
    lie more could win.

    Shapes: (n, d) -> (1, d), n >= r.
    Args:
        r: workers in a group, odd; 2 s + 1 stands s lies anywhere.
    Raises:
        TooManyFaults: a group without a majority, or without anybody.
        ValueError: n < r, or an even r.
    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877, section 4.1. Differs: r need not divide n; groups without a majority are found out.
        `chain(vote(codec, r), mean())` is the same code with a third of the traffic.
    """

    requirement: ClassVar[str] = "n >= r"

    r: int

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.r >= 1 and self.r % 2 == 1, f"repetition needs an odd r >= 1, got r={self.r}")

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def tolerances(self, n: int) -> tuple[int, ...]:
        """The number of false rows that each group tolerates."""
        return tuple((len(group) - 1) // 2 for group in vote_groups(n, self.r, "repetition"))

    def merges(self, n: int) -> int:
        vote_groups(n, self.r, "repetition")
        return 1

    def assign(self, n: int) -> Allocation:
        return vote_allocation(vote_groups(n, self.r, "repetition"))

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = max(len(stack.rows) + stack.erased, round.world.size, *(worker + 1 for worker in stack.ids))
        allocation = self.assign(n)
        voted, _ = GroupVote(self.r, "exclude")(stack, None, round)
        if voted.erased:
            decided = {allocation.unit(source[0]) for source in voted.sources}
            lost = sorted(set(range(allocation.num_units)) - decided)
            raise TooManyFaults(
                f"repetition(r={self.r}): no majority in group {', '.join(map(str, lost))}", voted.notes
            )
        here = Counter(allocation.unit(worker) for worker in stack.ids)
        thin = sum(count <= 2 for count in here.values())
        if thin and self.r > 2:
            voted = voted.note([Note("unprotected", value=float(thin))])
        # in the order of the groups, so that the sum has the same bits whoever won
        order = sorted(range(len(voted.rows)), key=lambda i: allocation.unit(voted.sources[i][0]))
        voted = voted.pick(order)
        # equal shares: the gate bounds weights by their median, which a lie or a missing row can move
        share = torch.full((len(order),), 1 / len(order), dtype=torch.float64)
        one = voted.one(mix_one(share, voted.rows))
        return replace(one, erased=0), {}

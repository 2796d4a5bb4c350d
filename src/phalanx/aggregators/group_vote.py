# SPDX-License-Identifier: Apache-2.0
"""A majority vote among workers that computed the same row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.aggregator import Aggregator
from phalanx.allocation import Allocation
from phalanx.codes.ballot import Ballot, ballot_notes, by_cluster, by_equality, check_vote, vote_allocation, vote_groups
from phalanx.expression import method
from phalanx.precision import wide
from phalanx.round import Round
from phalanx.stack import Stack
from phalanx.stage import Scope, State
from phalanx.tables import empty_rows


@method("group_vote", "aggregator")
class GroupVote(Aggregator):
    """Of each group of workers with the same work, the row that more than half of the members present hold.

    Rows are the same when they are exactly equal, or with a tolerance when |a - b|_2 <= atol + rtol min(|a|_2, |b|_2);
    then the most central of the rows that are near to more than half wins. The n workers form n // r contiguous groups
    whose sizes differ by one at most, and each group is one unit of work. A row that comes out weighs what one winner's
    does: its examples were computed r times over, not r times as many.

    Notes: "outvoted" for each worker that differs from its group's vote, "lost_groups" with the number of groups whose
    winners are all Byzantine, "undecided" with the number of groups without a majority, where there are any.

    Shapes: (n, d) -> (groups, d), n >= r.
    Args:
        r: workers in a group; odd r stands (r - 1) / 2 Byzantine ones in each.
        none: the vote without a majority: "zero" is a zero row, "exclude" none, which counts as an erased row.
        atol: distance at which rows agree, in the unit of the row, >= 0; for hardware that differs in the last bits.
        rtol: the same in norms of the row, in [0, 1); a lie within it may win.
    Raises:
        ValueError: n < r, or rows of several workers each.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205, Algorithm 1.
    Differs: r need not divide n; a group of which nobody is present is erased.
    """

    r: int
    none: Literal["zero", "exclude"] = "zero"
    atol: float = 0.0
    rtol: float = 0.0

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        check_vote("group_vote", self.r, self.atol, self.rtol)

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def merges(self, n: int) -> int:
        return len(vote_groups(n, self.r, self.expression_name))

    def assign(self, n: int) -> Allocation:
        return vote_allocation(vote_groups(n, self.r, self.expression_name))

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        if any(len(source) != 1 for source in stack.sources):
            raise ValueError("group_vote compares the rows of single workers; put it before the stages that merge rows")
        place = {worker: i for i, worker in enumerate(stack.ids)}
        # a plain call knows its rows only, a run its workers, of which some may sit this round out
        n = max(len(place) + stack.erased, round.world.size, *(worker + 1 for worker in place))
        groups = vote_groups(n, self.r, self.expression_name)
        decide = self._decide(stack, place)
        ballots = [decide([worker for worker in group if worker in place]) for group in groups]
        counted = [b for b in ballots if b.winners or (b.members and self.none == "zero")]
        rows = empty_rows(len(counted), stack.rows.shape[1], stack.rows)
        for row, ballot in zip(rows, counted, strict=True):
            if ballot.winners:
                row.copy_(stack.rows[place[ballot.winners[0]]])
            else:
                row.zero_()
        holders = [ballot.winners or ballot.members for ballot in counted]
        voted = replace(
            stack,
            rows=rows,
            sources=tuple(tuple(sorted(group)) for group in holders),
            weights=_weights(stack.weights, [[place[worker] for worker in group] for group in holders]),
            erased=len(groups) - len(counted),
        )
        return voted.note(ballot_notes(ballots, round, len(groups))), {}

    def _decide(self, stack: Stack, place: dict[int, int]) -> Callable[[Sequence[int]], Ballot]:
        rows = stack.rows
        if self.atol == self.rtol == 0:
            return lambda members: by_equality(members, lambda a, b: torch.equal(rows[place[a]], rows[place[b]]))
        floats = wide(rows.dtype)
        norms = torch.linalg.vector_norm(rows, dim=1, dtype=floats).tolist()

        def distance(a: int, b: int) -> float:
            return float(torch.linalg.vector_norm(rows[place[a]].to(floats) - rows[place[b]].to(floats)))

        def near(a: int, b: int) -> float:
            # a lie of huge norm is not given a huge tolerance
            return self.atol + self.rtol * min(norms[place[a]], norms[place[b]])

        return lambda members: by_cluster(members, distance, near)


def _weights(weights: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([weights[list(group)].median() for group in groups]) if groups else weights[:0]

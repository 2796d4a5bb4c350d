# SPDX-License-Identifier: Apache-2.0
"""A majority vote among workers that computed the same row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from phalanx.coding.majority_vote import (
    Ballot,
    Redundant,
    ballot_notes,
    by_cluster,
    by_equality,
    check_vote,
    hold_votes,
)
from phalanx.coding.placement import Placement, RandomOrder
from phalanx.coding.rounding_notice import rounding_notes
from phalanx.core.aggregator import Aggregator
from phalanx.core.buffers import empty_rows
from phalanx.core.expression import method
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State


@method("group_vote", "aggregator")
class GroupVote(Redundant, Aggregator):
    """The row that more than half of the present members hold, for each group of workers with the same work.

    Rows are the same when they are exactly equal, or with a tolerance when |a - b|_2 <= atol + rtol min(|a|_2, |b|_2);
    then the most central of the rows that are near to more than half wins. The n workers form n // r groups whose sizes
    differ by one at most, and each group is one unit of work. A row that comes out weighs what one winner's does: its
    examples were computed r times over, not r times as many. A zero has no sign: 0.0 and -0.0 are the same.

    A member whose row is missing, or does not pass the gate, is erased: it has no vote and is not accused. A group of g
    recovers from l lies and e erasures while 2 l + e <= g - 1.

    Notes: "outvoted" for each worker that differs from its group's vote, "lost_groups" with the number of groups whose
    winners are all Byzantine, and where there are any "undecided" with the number of groups without a majority and
    "unprotected" with the number of groups of three or more that one or two members decided; "notice" where rows should
    be equal and differ by rounding, looked for in a scheme's first round.

    Shapes: (n, d) -> (groups, d), n >= r.
    Args:
        r: workers in a group; odd r stands (r - 1) / 2 Byzantine ones in each.
        none: the vote without a majority: "zero" is a zero row, "exclude" none, which counts as an erased row.
        atol: distance at which rows agree, in the unit of the row, >= 0; for hardware that differs in the last bits.
        rtol: the same in norms of the row, in [0, 1); a lie within it may win.
        placement: which workers share a group.
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
    placement: Placement = RandomOrder()

    @property
    def needs(self) -> Kept:
        return "nothing" if self.atol or self.rtol else "equality"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        check_vote("group_vote", self.r, self.atol, self.rtol)

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def merges(self, n: int) -> int:
        return self.num_groups(n)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        if any(len(source) != 1 for source in stack.sources):
            raise ValueError("group_vote compares the rows of single workers; put it before the stages that merge rows")
        rows = _Rows(stack)
        place = rows.place
        # a plain call knows its rows only, a run its workers, of which some may sit this round out
        n = max(len(place) + stack.erased, round.world.size, *(worker + 1 for worker in place))
        exact = self.atol == self.rtol == 0

        def count(members: Sequence[int]) -> Ballot:
            return by_equality(members, rows.same) if exact else by_cluster(members, rows.distance, self._near(rows))

        ballots = hold_votes(self.groups(n, round.seed, round.index), place, count)
        notes = rounding_notes(ballots, rows.same, rows.apart, round) if exact else []
        counted = [b for b in ballots if b.winners or (b.members and self.none == "zero")]
        votes = empty_rows(len(counted), stack.rows.shape[1], stack.rows)
        for row, ballot in zip(votes, counted, strict=True):
            if ballot.winners:
                # plus zero, so that the bits of a zero do not depend on who stands for the group
                torch.add(stack.rows[place[ballot.winners[0]]], 0, out=row)
            else:
                row.zero_()
        holders = [ballot.winners or ballot.members for ballot in counted]
        voted = replace(
            stack,
            rows=votes,
            sources=tuple(tuple(sorted(group)) for group in holders),
            weights=_weights(stack.weights, [[place[worker] for worker in group] for group in holders]),
            erased=len(ballots) - len(counted),
            units=tuple(ballot.unit for ballot in counted),
        )
        return voted.note([*ballot_notes(ballots, round), *notes]), {}

    def _near(self, rows: _Rows) -> Callable[[int, int], float]:
        # a lie of huge norm is not given a huge tolerance
        return lambda a, b: self.atol + self.rtol * rows.least_norm(a, b)


class _Rows:
    """The rows of single workers, two by two."""

    def __init__(self, stack: Stack) -> None:
        self.place = {worker: i for i, worker in enumerate(stack.ids)}
        self._rows, self._floats = stack.rows, accumulation_dtype(stack.rows.dtype)

    def same(self, a: int, b: int) -> bool:
        return torch.equal(self._rows[self.place[a]], self._rows[self.place[b]])

    def distance(self, a: int, b: int) -> float:
        one, other = (self._rows[self.place[worker]].to(self._floats) for worker in (a, b))
        return float(torch.linalg.vector_norm(one - other))

    def least_norm(self, a: int, b: int) -> float:
        return min(self._norms[self.place[a]], self._norms[self.place[b]])

    def apart(self, a: int, b: int) -> float:
        """Their distance in norms of the shorter one."""
        norm = self.least_norm(a, b)
        return self.distance(a, b) / norm if norm else math.inf

    @cached_property
    def _norms(self) -> list[float]:
        return torch.linalg.vector_norm(self._rows, dim=1, dtype=self._floats).tolist()


def _weights(weights: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([weights[list(group)].median() for group in groups]) if groups else weights[:0]

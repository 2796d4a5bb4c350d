# SPDX-License-Identifier: Apache-2.0
"""A majority vote among workers that computed the same row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from phalanx.aggregator import Aggregator
from phalanx.aggregators.shuffle import even_groups
from phalanx.allocation import Allocation
from phalanx.expression import method, require
from phalanx.round import Round
from phalanx.stack import Note, Stack
from phalanx.stage import Scope, State, TooFewRows


@method("group_vote", "aggregator")
class GroupVote(Aggregator):
    """Of each group of workers with the same work, the row that more than half of the members present hold.

    Rows are the same when they are exactly equal. The n workers form n // r contiguous groups whose sizes differ by one
    at most, and each group is one unit of work. A row that comes out weighs what one winner's does: its examples were
    computed r times over, not r times as many.

    Notes: "outvoted" for each worker that differs from its group's vote, "lost_groups" with the number of groups whose
    winners are all Byzantine, "undecided" with the number of groups without a majority, where there are any.

    Shapes: (n, d) -> (groups, d), n >= r.
    Args:
        r: workers in a group; odd r stands (r - 1) / 2 Byzantine ones in each.
        none: the vote without a majority: "zero" is a zero row, "exclude" none, which counts as an erased row.
    Raises:
        ValueError: n < r, or rows of several workers each.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205, Algorithm 1.
    Differs: r need not divide n; a group of which nobody is present is erased.
    """

    r: int
    none: Literal["zero", "exclude"] = "zero"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.r >= 1, f"group_vote needs r >= 1, got r={self.r}")

    def tolerates(self, n: int) -> int:
        return (self.r - 1) // 2

    def merges(self, n: int) -> int:
        return len(self._groups(n))

    def assign(self, n: int) -> Allocation:
        return Allocation.single([g for g, group in enumerate(self._groups(n)) for _ in group])

    def _groups(self, n: int) -> list[range]:
        if n < self.r:
            raise TooFewRows(f"group_vote needs n >= r workers, got n={n}, r={self.r}")
        return even_groups(n, n // self.r)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        if any(len(source) != 1 for source in stack.sources):
            raise ValueError("group_vote compares the rows of single workers; put it before the stages that merge rows")
        place = {worker: i for i, worker in enumerate(stack.ids)}
        # a plain call knows its rows only, a run its workers, of which some may sit this round out
        n = max(len(place) + stack.erased, round.world.size, *(worker + 1 for worker in place))
        groups = self._groups(n)
        votes: list[tuple[list[int], list[int]]] = []
        for group in groups:
            members = [place[worker] for worker in group if worker in place]
            winners = _majority(stack.rows, members)
            if winners or (members and self.none == "zero"):
                votes.append((members, winners))
        rows = stack.rows.new_zeros(len(votes), stack.rows.shape[1])
        for i, (_, winners) in enumerate(votes):
            if winners:
                rows[i] = stack.rows[winners[0]]
        counted = [winners or members for members, winners in votes]
        voted = replace(
            stack,
            rows=rows,
            sources=tuple(tuple(sorted(stack.ids[i] for i in group)) for group in counted),
            weights=_weights(stack.weights, counted),
            erased=len(groups) - len(votes),
        )
        return voted.note(self._notes(stack, votes, round, len(groups))), {}

    def _notes(
        self, stack: Stack, votes: Sequence[tuple[list[int], list[int]]], round: Round, groups: int
    ) -> list[Note]:
        notes, lost, decided = [], 0, 0
        for members, winners in votes:
            if not winners:
                continue
            decided += 1
            lost += {stack.ids[i] for i in winners} <= round.byzantine
            losers = sorted(stack.ids[i] for i in members if i not in winners)
            notes += [Note("outvoted", worker, reason="another row has the majority of its group") for worker in losers]
        notes.append(Note("lost_groups", value=float(lost)))
        if decided < groups:
            notes.append(Note("undecided", value=float(groups - decided)))
        return notes


def _majority(rows: Tensor, members: Sequence[int]) -> list[int]:
    """The members that hold the row of more than half of them; none where no row has so many."""
    camps: list[list[int]] = []
    for i in members:
        camp = next((c for c in camps if torch.equal(rows[c[0]], rows[i])), None)
        if camp is None:
            camps.append([i])
        else:
            camp.append(i)
    return next((c for c in camps if 2 * len(c) > len(members)), [])


def _weights(weights: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    return torch.stack([weights[list(group)].median() for group in groups]) if groups else weights[:0]

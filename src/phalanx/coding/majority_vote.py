# SPDX-License-Identifier: Apache-2.0
"""Votes in groups of workers that computed the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.core.allocation import Allocation
from phalanx.core.expression import require
from phalanx.core.round import Round
from phalanx.core.stack import Note
from phalanx.core.stage import TooFewRows


@dataclass(frozen=True)
class Ballot:
    """The vote of one group.

    Args:
        members: workers of the group that are present.
        winners: those that hold what more than half of the members hold; the first one stands for them. None without
            a majority.
    """

    members: tuple[int, ...]
    winners: tuple[int, ...]


def check_vote(name: str, r: int, atol: float, rtol: float) -> None:
    """Raises ValueError for numbers that no vote can use."""
    require(r >= 1, f"{name} needs r >= 1, got r={r}")
    ok = 0 <= atol < math.inf and 0 <= rtol < 1
    require(ok, f"{name} needs a finite atol >= 0 and 0 <= rtol < 1, got atol={atol}, rtol={rtol}")


def vote_groups(n: int, r: int, name: str) -> list[range]:
    """n workers in n // r contiguous groups whose sizes differ by one at most.

    Raises:
        TooFewRows: n < r.
    """
    if n < r:
        raise TooFewRows(f"{name} needs n >= r workers, got n={n}, r={r}")
    return even_groups(n, n // r)


def vote_allocation(groups: Sequence[range]) -> Allocation:
    """Each group computes one unit."""
    return Allocation.single([g for g, group in enumerate(groups) for _ in group])


def group_by(members: Sequence[int], same: Callable[[int, int], bool]) -> list[list[int]]:
    """The members in groups that hold the same row, where being the same is transitive."""
    groups: list[list[int]] = []
    for worker in members:
        group = next((group for group in groups if same(group[0], worker)), None)
        if group is None:
            groups.append([worker])
        else:
            group.append(worker)
    return groups


def by_equality(members: Sequence[int], same: Callable[[int, int], bool]) -> Ballot:
    """The vote where being the same is transitive."""
    majority = next((group for group in group_by(members, same) if 2 * len(group) > len(members)), [])
    return Ballot(tuple(members), tuple(majority))


def by_cluster(
    members: Sequence[int], distance: Callable[[int, int], float], near: Callable[[int, int], float]
) -> Ballot:
    """The vote where rows are the same that are near: of the members near to most others the most central one wins.

    More than half of the members are near to the winner, so an honest one is.

    Args:
        near: the largest distance at which two members agree.
    """
    apart = {(a, b): distance(a, b) for a in members for b in members if a < b}
    apart |= {(b, a): x for (a, b), x in apart.items()}
    near_members = {a: [b for b in members if a == b or apart[a, b] <= near(a, b)] for a in members}
    spread = {a: sum(apart[a, b] for b in near_members[a] if b != a) for a in members}
    centre = min(near_members, key=lambda a: (-len(near_members[a]), spread[a], a), default=None)
    if centre is None or 2 * len(near_members[centre]) <= len(members):
        return Ballot(tuple(members), ())
    return Ballot(tuple(members), (centre, *(b for b in near_members[centre] if b != centre)))


def ballot_notes(ballots: Sequence[Ballot], round: Round, groups: int) -> list[Note]:
    """Who was outvoted, how many groups the Byzantine workers won, and how many had no majority."""
    notes, lost, decided = [], 0, 0
    for ballot in ballots:
        if not ballot.winners:
            continue
        decided += 1
        lost += set(ballot.winners) <= round.byzantine
        losers = sorted(set(ballot.members) - set(ballot.winners))
        notes += [Note("outvoted", worker, reason="another row has the majority of its group") for worker in losers]
    notes.append(Note("lost_groups", value=float(lost)))
    if decided < groups:
        notes.append(Note("undecided", value=float(groups - decided)))
    return notes

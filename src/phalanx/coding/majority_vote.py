# SPDX-License-Identifier: Apache-2.0
"""Votes in groups of workers that computed the same: who has a vote, who wins, and what is noted.

`vote`, `group_vote` and `repetition` hold their votes here, so that an erasure means the same in all of them. A member
of whom nothing arrives, or nothing that may enter, is erased: it has no vote and is not accused. The row that more than
half of the other members hold wins. So a group of g recovers from l lies and e erasures while 2 l + e <= g - 1.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.coding.placement import Placement
from phalanx.core.allocation import Allocation
from phalanx.core.expression import require
from phalanx.core.round import Round
from phalanx.core.stack import Note
from phalanx.core.stage import Stage, TooFewRows

Group = tuple[int, ...]  # workers that compute the same unit, ascending


@dataclass(frozen=True)
class Ballot:
    """The vote of one group.

    Args:
        members: workers of the group that are not erased.
        winners: those that hold what more than half of the members hold; the first one stands for them. None without
            a majority.
        size: of the whole group, with the erased workers.
        unit: number of the group, which is that of its unit of work.
    """

    members: tuple[int, ...]
    winners: tuple[int, ...]
    size: int = 0
    unit: int = 0

    @property
    def unprotected(self) -> bool:
        """Whether one liar among the few that decided is one too many, where a whole group would stand it."""
        return bool(self.winners) and len(self.members) <= 2 < self.size


class Redundant(Stage, ABC):
    """A stage with `r` workers for each unit of work, in groups that its `placement` makes."""

    r: int
    placement: Placement

    def num_groups(self, n: int) -> int:
        """The number of groups of n workers: n // r.

        Raises:
            TooFewRows: n < r.
            ValueError: the placement does not fit.
        """
        if n < self.r:
            raise TooFewRows(f"{self.expression_name} needs n >= r workers, got n={n}, r={self.r}")
        self.placement.check(n, n // self.r)
        return n // self.r

    def groups(self, n: int, seed: int, index: int) -> list[Group]:
        """The workers of each group; sizes differ by one at most."""
        count = self.num_groups(n)
        workers = self.placement.workers(n, seed, index, count)
        return [tuple(sorted(workers[cut.start : cut.stop])) for cut in even_groups(n, count)]

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation:
        """Each group computes one unit."""
        units = {worker: unit for unit, group in enumerate(self.groups(n, seed, index)) for worker in group}
        return Allocation.single([units[worker] for worker in range(n)])


def check_vote(name: str, r: int, atol: float, rtol: float) -> None:
    """Raises ValueError for numbers that no vote can use."""
    require(r >= 1, f"{name} needs r >= 1, got r={r}")
    ok = 0 <= atol < math.inf and 0 <= rtol < 1
    require(ok, f"{name} needs a finite atol >= 0 and 0 <= rtol < 1, got atol={atol}, rtol={rtol}")


def hold_votes(
    groups: Sequence[Group],
    present: Collection[int],
    count: Callable[[Sequence[int]], Ballot],
    refused: Callable[[Sequence[Ballot]], Collection[int]] = lambda ballots: (),
) -> list[Ballot]:
    """One ballot for each group.

    Args:
        present: workers of whom something arrived that may enter.
        count: the vote of some members; none, when there are none.
        refused: given all ballots, the members whose row turns out to be none that may enter. They are erased, and what
            is left of their groups votes again.
    """
    present = set(present)

    def ballot(unit: int) -> Ballot:
        made = count([worker for worker in groups[unit] if worker in present])
        return Ballot(made.members, made.winners, len(groups[unit]), unit)

    ballots = [ballot(unit) for unit in range(len(groups))]
    while gone := set(refused(ballots)):
        present -= gone
        ballots = [ballot(old.unit) if gone & set(old.members) else old for old in ballots]
    return ballots


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


def ballot_notes(ballots: Sequence[Ballot], round: Round) -> list[Note]:
    """Who was outvoted, and how many groups the liars won, had no majority, or were decided by one or two members."""
    decided = [ballot for ballot in ballots if ballot.winners]
    notes = [
        Note("outvoted", worker, reason="another row has the majority of its group")
        for ballot in decided
        for worker in sorted(set(ballot.members) - set(ballot.winners))
    ]
    notes.append(Note("lost_groups", value=float(sum(set(b.winners) <= round.byzantine for b in decided))))
    if len(decided) < len(ballots):
        notes.append(Note("undecided", value=float(len(ballots) - len(decided))))
    if thin := sum(ballot.unprotected for ballot in ballots):
        notes.append(Note("unprotected", value=float(thin)))
    return notes

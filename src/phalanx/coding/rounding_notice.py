# SPDX-License-Identifier: Apache-2.0
"""Exact votes that rounding spoils: seen in a scheme's first round, told from lies, said in one sentence.

Members of a group compute the same row, so the votes of the first round are the test whether this cluster can hold
exact ones: no gradient is computed for it, and only differences that a vote meets count, such as those between machines
in one group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations

from phalanx.coding.majority_vote import Ballot, group_by
from phalanx.core.round import Round
from phalanx.core.stack import Note
from phalanx.distributed.determinism import ranks_in_words

NEAR = 0.01  # relative: more than kernels differ by, in bfloat16 too; a lie within it does little
FINEST = 2.0**-23  # by so much, relative, float32 may differ in any later round
HEADROOM = 10.0
_NAMED = 3  # groups


def watched(round: Round) -> bool:
    """Whether exact votes look for rounding: in a scheme's first round, if several processes compute."""
    return round.is_first and len(round.world.local_workers) < round.world.size


def rounding_notes(
    ballots: Sequence[Ballot],
    same: Callable[[int, int], bool],
    apart: Callable[[int, int], float],
    round: Round,
    what: str = "votes",
) -> list[Note]:
    """A "notice" if members of a group hold rows that are near and not the same, with the tolerance that helps.

    Args:
        same: whether two members hold the same, which is transitive.
        apart: the relative distance of their rows; infinite where nobody knows.
        what: is not possible then.
    """
    distances, between = [], []
    for ballot in ballots if watched(round) else ():
        # rows of Byzantine workers in an injected attack say nothing about hardware
        honest = [worker for worker in ballot.members if worker not in round.byzantine]
        if set(honest) <= set(ballot.winners):
            continue
        pairs = [(a, b, apart(a[0], b[0])) for a, b in combinations(group_by(honest, same), 2)]
        near = [(a, b, distance) for a, b, distance in pairs if 0 < distance <= NEAR]
        if near:
            distances.append(max(distance for *_, distance in near))
            involved = sorted({tuple(group) for a, b, _ in near for group in (a, b)})
            between.append(f"between {' and '.join(map(ranks_in_words, involved))}")
    return [Note("notice", reason=_sentence(max(distances), between, what))] if distances else []


def tolerance(distance: float) -> float:
    """The rtol, a power of ten, for rows that differ by a relative distance of at most 0.01; 10 to 100 times that."""
    return min(0.1, 10.0 ** math.ceil(math.log10(HEADROOM * max(distance, FINEST))))


def _sentence(distance: float, between: Sequence[str], what: str) -> str:
    more = len(between) - _NAMED
    rest = [f"and in {more} group{'s' * (more > 1)} more"] if more > 0 else []
    rtol = f"rtol={tolerance(distance):.0e}"
    return (
        f"exact {what} are not possible on this cluster: rows of the same work differ by up to {distance:.1e} "
        f"(relative), {', '.join([*between[:_NAMED], *rest])}; write vote(..., {rtol}) or group_vote(..., {rtol}), "
        "or give all processes the same hardware, software and number of threads"
    )

# SPDX-License-Identifier: Apache-2.0
"""Comparisons of published and measured numbers, and what follows from them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot
from typing import Any

from phalanx_experiments.reproduce.evidence import Evidence, Number
from phalanx_experiments.reproduce.item import PARTLY, REPRODUCED, UNRUN, Claim, Item, Row
from phalanx_experiments.reproduce.places import Counted, Place, paired

CLOSE = 0.01  # of the published number


@dataclass(frozen=True)
class Judged:
    """A published comparison of two numbers, and the measured gap between them.

    Args:
        gap: how much higher the one is that was published as higher; None where something was not measured.
    """

    words: str
    gap: Number | None
    unit: str

    @property
    def holds(self) -> bool | None:
        """Whether it is as published; None where it was not measured."""
        return None if self.gap is None else self.gap.mean > 0

    @property
    def clear(self) -> bool:
        """Whether the gap is beyond the spread over the seeds."""
        return self.gap is not None and self.gap.stdev is not None and abs(self.gap.mean) > self.gap.stdev

    @property
    def verdict(self) -> str:
        """The outcome of the comparison in words."""
        if self.gap is None:
            return "not measured"
        if self.gap.mean == 0:
            return f"no difference{_seeds(self.gap)}"
        direction = "as published" if self.holds else "the other way"
        if self.gap.stdev is None:
            return f"{direction}{_seeds(self.gap)}"
        return f"{direction}, {'beyond' if self.clear else 'within'} the spread of n = {self.gap.n}"

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        gap = None if self.gap is None else self.gap.to_json()
        return {"claim": self.words, "gap": gap, "unit": self.unit, "holds": self.holds, "verdict": self.verdict}


def _seeds(number: Number) -> str:
    if number.n == 0:
        return ""
    return ", n = 1, so no spread is known" if number.n == 1 else f", n = {number.n}, whose spread is not known"


def judged(item: Item, evidence: Evidence) -> list[Judged]:
    """Compares neighbours in the published order of the rows, and the claims."""
    comparisons = [
        Judged(f"{a.what} above {b.what}", _gap(a.measured, b.measured, evidence), a.unit) for a, b in _order(item)
    ]
    for claim in item.claims:
        comparisons.append(Judged(claim.words, _claimed(claim, evidence), claim.unit))
    return comparisons


def _order(item: Item) -> Iterator[tuple[Row, Row]]:
    """Pairs of neighbours in the published order, the higher first."""
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in item.rows:
        if row.published is not None and row.group is not None:
            groups.setdefault((row.group, row.unit), []).append((row.published, row))
    for rows in groups.values():
        ordered = sorted(rows, key=lambda each: -each[0])
        yield from ((a, b) for (x, a), (y, b) in pairwise(ordered) if x > y)


def _gap(above: Place, below: Place, evidence: Evidence) -> Number | None:
    """The difference, with the spread of both where only their means are known."""
    x, y = above.find(evidence), below.find(evidence)
    gap = paired(x, y, operator.sub)
    if gap is None or gap.seeds or x is None or y is None or x.stdev is None or y.stdev is None:
        return gap
    return replace(gap, stdev=hypot(x.stdev, y.stdev))


def _claimed(claim: Claim, evidence: Evidence) -> Number | None:
    if not isinstance(claim.below, int | float):
        return _gap(claim.above, claim.below, evidence)
    above, floor = claim.above.find(evidence), claim.below
    if above is None:
        return None
    return Number(above.mean - floor, above.n, above.stdev, {seed: x - floor for seed, x in above.seeds.items()})


def compared(row: Row, measured: Number | None) -> str:
    """How a measured number compares with the published one; empty where only orders can be compared."""
    if measured is None:
        return "not measured"
    if not row.same or row.published is None:
        return ""
    off = abs(measured.mean - row.published)
    if off == 0:
        return "equal"
    if off <= max(row.spread or 0.0, measured.stdev or 0.0):
        return "within the spread"
    if off < CLOSE * abs(row.published):
        return f"within {100 * CLOSE:.0f} %"
    if row.unit in ("%", "points"):
        return f"{measured.mean - row.published:+.1f} points"
    return f"{measured.mean / row.published:.3g} times as much"


def state(item: Item, evidence: Evidence) -> str:
    """The stated state; "not run" as long as a folder of results has nothing of an item that has runs."""
    runs = [place for place in item.places if not isinstance(place, Counted)]
    if evidence.root is None or item.state not in (PARTLY, REPRODUCED) or not runs:
        return item.state
    return UNRUN if all(place.find(evidence) is None for place in runs) else item.state


def seeds(item: Item, evidence: Evidence) -> str:
    """The number of seeds behind its numbers, such as '3' or '1-5'; empty if there are none."""
    numbers = [place.find(evidence) for place in item.places if not isinstance(place, Counted)]
    counts = sorted({number.n for number in numbers if number is not None and number.n})
    if not counts:
        return ""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def outcome(comparisons: Sequence[Judged]) -> str:
    """One sentence on all comparisons."""
    known = [each for each in comparisons if each.holds is not None]
    if not known:
        return "Nothing of this was measured." if comparisons else ""
    held = [each for each in known if each.holds]
    clear = sum(each.clear for each in held)
    spread = any(each.gap is not None and each.gap.stdev is not None for each in known)
    beyond = f", {clear} of them beyond the spread over the seeds" if spread and held else ""
    single = "; one seed, so no spread is known" if not spread and any(e.gap and e.gap.n == 1 for e in known) else ""
    rest = len(comparisons) - len(known)
    missing = f"; {rest} not measured" if rest else ""
    return f"{len(held)} of {len(known)} comparisons as published{beyond}{single}{missing}."

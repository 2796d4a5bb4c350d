# SPDX-License-Identifier: Apache-2.0
"""Comparisons of published and measured numbers, and what follows from them."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import hypot, sqrt
from typing import Any

from phalanx_experiments.reproduce.evidence import Evidence, Number
from phalanx_experiments.reproduce.item import (
    DIRECTION,
    NOT,
    PARTLY,
    REPRODUCED,
    SIZE,
    UNCOMPARED,
    UNRUN,
    Claim,
    Item,
    Row,
)
from phalanx_experiments.reproduce.places import Counted, Place, paired

CLOSE = 0.01  # of the published number
COUNTED = 0.02  # of a published number that is counted; some are rounded to two digits
FACTOR = 2.0  # within which a size is the published one
ENOUGH = 3  # seeds, for a size to be called reproduced
# Student's t, two-sided 95 %, by the number of seeds; that of 10 is wider than needed beyond
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Judged:
    """A published statement, and what was measured of it.

    Args:
        gap: how much higher the one is that was published as higher, or the number itself; None where something was not
            measured.
        published: the same as published; None where it stands in a figure only.
        number: the number itself is compared, not a gap, so that another size is another number.
    """

    words: str
    gap: Number | None
    unit: str
    published: float | None = None
    number: bool = False

    @property
    def times(self) -> float | None:
        """The measured size over the published one."""
        return None if self.gap is None or not self.published else self.gap.mean / self.published

    @property
    def fits(self) -> bool:
        """Whether sign and size are as published: within FACTOR, of what is counted within COUNTED."""
        if self.gap is None or self.times is None:
            return False
        if self.gap.n == 0:
            return abs(self.times - 1) < COUNTED
        return 1 / FACTOR <= self.times <= FACTOR

    @property
    def holds(self) -> bool | None:
        """Whether the sign, or the number, is as published; None where it was not measured."""
        if self.gap is None:
            return None
        return self.fits if self.number else self.gap.mean > 0

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gap over the seeds, by Student's t; None with one seed, or an unknown spread."""
        if self.gap is None or self.gap.stdev is None or self.gap.n < 2:
            return None
        half = STUDENT.get(self.gap.n, STUDENT[10]) * self.gap.stdev / sqrt(self.gap.n)
        return self.gap.mean - half, self.gap.mean + half

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out no gap at all."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def level(self) -> str:
        """What holds of it, as one of the states of an item."""
        if self.gap is None:
            return UNRUN
        if not self.holds:
            return NOT
        if not self.fits:
            return DIRECTION
        return REPRODUCED if self.gap.n == 0 or (self.gap.n >= ENOUGH and self.clear) else SIZE

    @property
    def verdict(self) -> str:
        """The outcome of the comparison in words."""
        if self.gap is None:
            return "not measured"
        behind = f", n = {self.gap.n}" if self.gap.n else ", counted"
        if self.gap.n >= 2:
            chance = "" if self.clear else ", spread not known" if self.interval is None else ", within chance"
            behind = chance + behind
        times = "" if self.times is None or self.fits else f", {self.times:.2g} times the published size"
        if self.level == NOT:
            other = "another size" if self.number else "no difference" if self.gap.mean == 0 else "the other way"
            return f"{other}{times if self.number else ''}{behind}"
        return f"{self.level}{times}{behind}"

    def to_json(self) -> dict[str, Any]:
        """The comparison as plain values for JSON."""
        gap = None if self.gap is None else self.gap.to_json()
        known = {"claim": self.words, "published": self.published, "gap": gap, "interval": self.interval}
        return {**known, "unit": self.unit, "holds": self.holds, "verdict": self.verdict}


def judged(item: Item, evidence: Evidence) -> list[Judged]:
    """Compares neighbours in the published order of the rows, numbers of the real size, and the claims."""
    comparisons = [
        Judged(f"{a.what} above {b.what}", _gap(a.measured, b.measured, evidence), a.unit, x - y)
        for (x, a), (y, b) in _order(item)
    ]
    for row in item.rows:
        if row.same and row.published is not None:
            comparisons.append(Judged(row.what, row.measured.find(evidence), row.unit, row.published, number=True))
    for claim in item.claims:
        comparisons.append(Judged(claim.words, _claimed(claim, evidence), claim.unit, claim.published))
    return comparisons


def _order(item: Item) -> Iterator[tuple[tuple[float, Row], tuple[float, Row]]]:
    """Pairs of neighbours in the published order, the higher first, with their published numbers."""
    groups: dict[tuple[str, str], list[tuple[float, Row]]] = {}
    for row in item.rows:
        if row.published is not None and row.group is not None:
            groups.setdefault((row.group, row.unit), []).append((row.published, row))
    for rows in groups.values():
        ordered = sorted(rows, key=lambda each: -each[0])
        yield from ((a, b) for a, b in pairwise(ordered) if a[0] > b[0])


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
    """What the numbers say of an item that was run, and never more than is stated of it.

    An item is "not run" as long as a folder of results has nothing of it.
    """
    if evidence.root is None or item.state not in (NOT, PARTLY, REPRODUCED):
        return item.state
    runs = [place for place in item.places if not isinstance(place, Counted)]
    if runs and all(place.find(evidence) is None for place in runs):
        return UNRUN
    levels = [each.level for each in judged(item, evidence)]
    if all(level == UNRUN for level in levels):
        return UNCOMPARED
    if item.state == NOT or not {REPRODUCED, SIZE, DIRECTION} & set(levels):
        return NOT
    if item.state == PARTLY or NOT in levels or UNRUN in levels:
        return PARTLY
    return next(level for level in (DIRECTION, SIZE, REPRODUCED) if level in levels)


def seeds(item: Item, evidence: Evidence) -> str:
    """The number of seeds behind its numbers, such as '3' or '1-5'; empty if there are none."""
    numbers = [place.find(evidence) for place in item.places if not isinstance(place, Counted)]
    counts = sorted({number.n for number in numbers if number is not None and number.n})
    if not counts:
        return ""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def outcome(comparisons: Sequence[Judged]) -> str:
    """One sentence on all comparisons, the failed ones among them."""
    words = {
        REPRODUCED: f"{REPRODUCED} in sign and size",
        SIZE: f"of the {SIZE}, with n < {ENOUGH} or within chance",
        DIRECTION: f"of the {DIRECTION} only",
        NOT: "not as published",
        UNRUN: "not measured",
    }
    levels = [each.level for each in comparisons]
    if not comparisons:
        return ""
    if set(levels) == {UNRUN}:
        return "Nothing of this was measured."
    counts = "; ".join(f"{levels.count(level)} {said}" for level, said in words.items() if level in levels)
    return f"{len(levels)} {'comparison' if len(levels) == 1 else 'comparisons'}: {counts}."

# SPDX-License-Identifier: Apache-2.0
"""A plan as a table to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from phalanx.lowrank.plan import Entry, Plan

FULL = "full"
_NAMES = ("layer", "kind", "shape", "rank")
_NUMBERS = ("parameters", "after", "MB a step", "after", "MACs", "after", "ms", "after")


def table(plan: Plan) -> str:
    """One line an entry, and the totals; columns of what was not counted or measured are left out."""
    rows: list[tuple[str, ...]] = [(*_NAMES, *_NUMBERS, "why")]
    for e in plan:
        rank = FULL if e.rank is None else str(e.rank)
        rows.append((e.name or "(model)", e.kind, "x".join(map(str, e.shape)), rank, *_numbers(e), e.reason))
    rows.append(("others", "", "", "", *[f"{plan.others:,}"] * 2, *[""] * 7))
    rows.append(("total", "", "", "", *_numbers(plan), ""))
    last = len(rows[0]) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or any(row[i] for row in rows[1:])]
    widths = {i: max(len(row[i]) for row in rows) for i in kept}
    cell = {i: str.rjust if 3 <= i < last else str.ljust for i in kept}
    return "\n".join("  ".join(cell[i](row[i], widths[i]) for i in kept).rstrip() for row in rows)


def _numbers(counted: Entry | Plan) -> tuple[str, ...]:
    """The cells of an entry, or of all of them."""
    return (
        *(f"{n:,}" for n in (counted.parameters, counted.parameters_after)),
        *(f"{n / 1e6:,.2f}" for n in (counted.step_bytes, counted.step_bytes_after)),
        *("" if n is None else f"{n:,}" for n in (counted.macs, counted.macs_after)),
        *("" if s is None else f"{1e3 * s:,.2f}" for s in (counted.seconds, counted.seconds_after)),
    )

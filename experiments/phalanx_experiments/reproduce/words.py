# SPDX-License-Identifier: Apache-2.0
"""The catalogue and its comparisons in words, for terminal and site."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from phalanx.tools.report.sheet import Sheet
from phalanx_experiments.reproduce import verdict
from phalanx_experiments.reproduce.evidence import Evidence, Number
from phalanx_experiments.reproduce.item import Item

NAMED = 8  # of what is missing


def recipes(item: Item) -> str:
    """The recipes, or the command that is none."""
    return ", ".join(part.recipe for part in item.parts) or (item.command.split(" --")[0] if item.command else "")


def duration(minutes: float | None) -> str:
    """'6 s', '18 min', '1 h 5 min'."""
    if minutes is None:
        return ""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def number(value: float | None, spread: float | None = None) -> str:
    """'93.47 +- 0.59', '11,173,962', '-' where there is none."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    words = f"{value:.{digits}f}".rstrip("0").rstrip(".")
    return words if spread is None else f"{words} +- {f'{spread:#.2g}'.rstrip('.')}"


def found(measured: Number | None) -> str:
    """'93.47 +- 0.59', '-'."""
    return "-" if measured is None else number(measured.mean, measured.stdev)


def count(measured: Number | None) -> str:
    """The number of seeds; 'counted' of what has none."""
    return "" if measured is None else str(measured.n) if measured.n else "counted"


def listing(items: Sequence[Item], evidence: Evidence) -> Sheet:
    """A line each: recipe, scale, expected time, state, seeds, and what it shows."""
    rows = []
    for item in items:
        state = verdict.state(item, evidence)
        line = (item.key, state, verdict.seeds(item, evidence), recipes(item), item.usual, duration(item.minutes))
        rows.append((*line, item.title))
    return Sheet("", ("", "state", "n", "recipe or command", "scale", "time", "what it shows"), tuple(rows))


def comparison(item: Item, evidence: Evidence, run: Evidence | None = None) -> Sheet:
    """Published beside measured, and beside a run of one's own if there is one; what is neither is left out."""
    columns = () if run is None else ("this run", "n of it")
    rows = []
    for row in item.rows:
        committed = row.measured.find(evidence)
        if row.published is None and committed is None and (run is None or row.measured.find(run) is None):
            continue
        line = [f"{row.what}{f' ({row.unit})' if row.unit else ''}", number(row.published, row.spread)]
        line += [found(committed), count(committed)]
        shown = committed
        if run is not None:
            shown = row.measured.find(run)
            line += [found(shown), count(shown)]
        rows.append((*line, verdict.compared(row, shown)))
    header = ("what", "published", "measured", "n", *columns, "beside the published")
    if not any(row[-1] for row in rows):
        return Sheet("", header[:-1], tuple(row[:-1] for row in rows))
    return Sheet("", header, tuple(rows))


def verdicts(item: Item, evidence: Evidence) -> Sheet:
    """What was published, its size and the measured one with its interval, and the verdict; nothing if not measured."""
    comparisons = verdict.judged(item, evidence)
    known = any(each.gap is not None for each in comparisons)
    rows = [
        (each.words, number(each.published), _gap(each.gap, each.unit), _interval(each), each.verdict)
        for each in comparisons
        if known
    ]
    return Sheet("", ("published", "its size", "measured", "95 % interval", "verdict"), tuple(rows))


def _interval(compared: verdict.Judged) -> str:
    return "-" if compared.interval is None else " to ".join(map(number, compared.interval))


def missing(item: Item, evidence: Evidence) -> str:
    """One sentence on the numbers that were not measured yet; empty if there are none."""
    lacking = [row.what for row in item.rows if row.measured.find(evidence) is None]
    if not lacking:
        return ""
    more = f", and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
    return f"Not measured: {'; '.join(lacking[:NAMED])}{more}."


def _gap(gap: Number | None, unit: str) -> str:
    """'+13.53 points', '-'."""
    if gap is None:
        return "-"
    return f"{'' if gap.mean < 0 else '+'}{found(gap)} {'points' if unit == '%' else unit}".strip()


def plain(item: Item, evidence: Evidence) -> dict[str, Any]:
    """An item as plain values."""
    rows = [
        {
            "what": row.what,
            "unit": row.unit,
            "published": row.published,
            "published_stdev": row.spread,
            "measured": None if (measured := row.measured.find(evidence)) is None else measured.to_json(),
        }
        for row in item.rows
    ]
    return {
        "key": item.key,
        "chapter": item.chapter,
        "title": item.title,
        "state": verdict.state(item, evidence),
        "recipes": [part.recipe for part in item.parts],
        "command": item.again,
        "scale": item.usual or None,
        "minutes": item.minutes,
        "why": item.why,
        "rows": rows,
        "verdicts": [each.to_json() for each in verdict.judged(item, evidence)],
        "outcome": verdict.outcome(verdict.judged(item, evidence)),
    }

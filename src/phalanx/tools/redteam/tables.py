# SPDX-License-Identifier: Apache-2.0
"""The tables of a red team study, for terminal and report."""

from __future__ import annotations

from collections.abc import Sequence

from phalanx.tools.redteam.selection_bias import Share
from phalanx.tools.redteam.verdict import Cell, Standing
from phalanx.tools.report.backdoors import QUIET
from phalanx.tools.report.sheet import Sheet


def attacks_of(standings: Sequence[Standing]) -> list[str]:
    """The attacks of a grid, in its order."""
    return list(dict.fromkeys(cell.attack for standing in standings for cell in standing.attacked))


def verdicts(standings: Sequence[Standing]) -> Sheet:
    """A rule a line: its verdict, and that beside each attack with the points of attack success gained."""
    attacks = attacks_of(standings)
    rows = []
    for standing in standings:
        cells = [standing.cells.get(attack) for attack in attacks]
        rows.append(
            (
                standing.rule,
                standing.word,
                *("" if cell is None else f"{cell.word} {gained(cell)} n={cell.n}" for cell in cells),
            )
        )
    return Sheet(
        "verdicts, and points of attack success above the run without an attack (95 % interval, n seeds)",
        ("rule", "verdict", *attacks),
        tuple(rows),
    )


def gained(cell: Cell) -> str:
    """'+31.4 (+28.0 to +34.1)' with the interval where there is one, nothing where the gain is not known."""
    gain, interval = cell.number("excess"), cell.interval
    if gain is None:
        return ""
    return f"{100 * gain:+.1f}" + (
        "" if interval is None else f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
    )


def costs(standings: Sequence[Standing]) -> Sheet:
    """A rule a line: main accuracy without an attack and under the worst, and what is lost of the plain mean's."""
    rows = []
    for standing in standings:
        quiet = standing.cells.get(QUIET)
        under = [value for cell in standing.attacked if (value := cell.number("main_accuracy")) is not None]
        lost = [value for cell in standing.cells.values() if (value := cell.number("accuracy_lost")) is not None]
        alone = None if quiet is None else quiet.number("main_accuracy")
        rows.append(
            (standing.rule, _percent(alone), _percent(min(under, default=None)), _percent(max(lost, default=None)))
        )
    header = ("rule", "no attack", "worst attack", "points below the plain mean, at most")
    return Sheet("main accuracy (%)", header, tuple(rows))


def fairness(standings: Sequence[Standing]) -> Sheet:
    """One line for each rule: accuracy parity, and which rows it took in all its runs."""
    rows = []
    for standing in standings:
        quiet = standing.cells.get(QUIET)
        under = [value for cell in standing.attacked if (value := cell.number("parity")) is not None]
        alone = None if quiet is None else quiet.number("parity")
        groups = [cell.chosen for cell in standing.cells.values() if cell.chosen is not None]
        total = sum(groups[1:], groups[0]) if groups else None
        shares = (
            (None, None, None) if total is None else tuple(map(_share, (total.attackers, total.holders, total.others)))
        )
        rows.append((standing.rule, alone, min(under, default=None), *shares))
    header = (
        "rule",
        "parity, no attack",
        "parity, worst attack",
        "rows taken: attackers",
        "honest with edge cases",
        "other honest",
    )
    return Sheet("who was shut out", header, tuple(rows))


def _share(share: Share) -> str | None:
    return None if share.rate is None else f"{100 * share.rate:.0f} % of {share.came}"


def _percent(x: float | None) -> float | None:
    return None if x is None else round(100 * x, 1)

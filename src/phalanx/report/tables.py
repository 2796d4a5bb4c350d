# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, and numbers as people read them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from phalanx.registry import Entry

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OFTEN = 0.5  # share of the rounds in which a worker was accused, for the table to name it
PIPE_WIDTH = 160  # columns, where no terminal says how many it has


def console(stderr: bool = False) -> Console:
    """The terminal, or a pipe wide enough for a table."""
    from rich.console import Console

    tty = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=not tty, width=None if tty else PIPE_WIDTH)


def percent(ratio: float | None) -> str:
    """0.9667 as '96.7 %'."""
    return "-" if ratio is None else f"{100 * ratio:.1f} %"


def size(count: float | None) -> str:
    """Bytes with a decimal unit: 4840 as '4.84 kB'."""
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def seconds(duration: float | None) -> str:
    """0.00123 as '1.23 ms', 75 as '75 s'."""
    if duration is None:
        return "-"
    if duration >= 100:
        return f"{duration:.0f} s"
    return f"{duration:.3g} s" if duration >= 0.9995 else f"{1000 * duration:.3g} ms"


def accused(summary: dict[str, Any]) -> str:
    """The workers that were excluded or outvoted in most rounds, and how right all accusations were."""
    rows, rounds = summary.get("accused", []), max(1, summary.get("rounds", 0))
    named = [str(r["worker"]) for r in rows if r["excluded"] + r["outvoted"] >= OFTEN * rounds]
    precision, recall = summary.get("accusation_precision"), summary.get("accusation_recall")
    if precision is None:
        return "none"
    right = f"{100 * precision:.0f} % right"
    caught = "" if recall is None else f", {100 * recall:.0f} % caught"
    return f"{' '.join(named) or 'nobody often'} ({right}{caught})"


def results_table(results: Iterable[tuple[str, float | None, dict[str, Any]]]) -> Table:
    """One line a run.

    Args:
        results: label, accuracy, summary; the summary is empty for a run that has not ended.
    """
    table = _table("run", ">accuracy", ">time a round", ">sent by a worker a round", ">lost groups", ">lost rounds")
    table.add_column("excluded or outvoted workers", overflow="fold")
    for label, accuracy, summary in results:
        if not summary:
            _add(table, label, percent(accuracy), "-", "-", "-", "-", "not finished")
            continue
        _add(
            table,
            label,
            percent(accuracy),
            seconds(summary["round_s"]),
            size(summary["bytes_per_worker_round"]),
            str(summary["lost_groups"]),
            str(summary["lost_rounds"]),
            accused(summary),
        )
    return table


def fields(entry: Entry) -> list[str]:
    """The fields as one writes them: 'f', 'c=100.0', '*stages'."""
    out = []
    for p in entry.signature.parameters.values():
        star = "*" if p.kind is inspect.Parameter.VAR_POSITIONAL else ""
        out.append(f"{star}{p.name}" + ("" if p.default is inspect.Parameter.empty else f"={p.default!r}"))
    return out


def plain_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Words in columns."""
    table = _table(*header)
    table.title, table.title_justify = title, "left"
    for row in rows:
        _add(table, *row)
    return table


def _table(*columns: str) -> Table:
    """An empty table; '>' before a name puts the column to the right."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title_style="bold", header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text, whose brackets are no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))

# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, and numbers as people read them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from phalanx.core.registry import Entry
from phalanx.tools.report.score import ACCURACY, Score, common_score

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


OFTEN = 0.5  # share of the rounds in which a worker was accused or excluded, for the table to name it
PIPE_WIDTH = 160  # columns, where no terminal says how many it has


def console(stderr: bool = False) -> Console:
    """The terminal, or a pipe wide enough for a table."""
    from rich.console import Console

    tty = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, highlight=False, soft_wrap=not tty, width=None if tty else PIPE_WIDTH)


def percent(ratio: float | None, decimals: int = 1) -> str:
    """0.9667 as '96.7 %'."""
    return "-" if ratio is None else f"{100 * ratio:.{decimals}f} %"


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
    if 0 < duration < 0.9995e-3:
        return f"{1e6 * duration:.3g} us"
    return f"{duration:.3g} s" if duration >= 0.9995 else f"{1000 * duration:.3g} ms"


def named(summary: dict[str, Any]) -> str:
    """The workers that were accused or excluded in at least half of the rounds: '0 5 10', '0-14', 'none'."""
    rounds = max(1, summary["rounds"])
    rows = summary["accused"]
    # before 0.2 nobody was accused
    workers = [r["worker"] for r in rows if max(r["excluded"], r.get("accused", r["outvoted"])) >= OFTEN * rounds]
    runs: list[list[int]] = []
    for worker in workers:
        if runs and runs[-1][-1] == worker - 1:
            runs[-1].append(worker)
        else:
            runs.append([worker])
    words = [f"{r[0]}-{r[-1]}" if len(r) > 2 else " ".join(map(str, r)) for r in runs]
    return " ".join(words) or "none"


def results_table(results: Iterable[tuple[str, float | None, dict[str, Any]]], scores: Iterable[Score] = ()) -> Table:
    """One line a run: bytes that a worker sends in a round, groups and rounds that were lost, and who is named.

    Of all accusations and exclusions some share was "right", of all Byzantine rows some share was "caught"; "-" stands
    where no worker is Byzantine by the run itself, so that the truth is unknown.

    Args:
        results: label, accuracy or score, summary; the summary is empty for a run that has not ended.
        scores: what the number of each result is; the accuracy if left out.
    """
    lines = list(results)
    kinds = list(scores) or [ACCURACY] * len(lines)
    common = common_score(kinds)
    title = "score" if common is None else common.name
    if common is not None and not common.higher_is_better:
        title += "\nlower is\nbetter"
    head = ("run", f">{title}", ">time\na round", ">bytes\na worker", ">lost\ngroups", ">lost\nrounds", " named")
    table = make_table(*head, ">right", ">caught", whole=True)
    for (label, value, summary), score in zip(lines, kinds, strict=True):
        reached = score.words(value) if common is not None else f"{score.name} {score.words(value)}"
        if not summary:
            add_row(table, label, reached, *"----", " not finished", "-", "-")
            continue
        add_row(
            table,
            label,
            reached,
            seconds(summary["round_s"]),
            size(summary["bytes_per_worker_round"]),
            str(summary["lost_groups"]),
            str(summary["lost_rounds"]),
            f" {named(summary)}",
            percent(summary["accusation_precision"], 0),
            percent(summary["accusation_recall"], 0),
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
    table = make_table(*header)
    table.title, table.title_justify = title, "left"
    for row in rows:
        add_row(table, *row)
    return table


def make_table(*columns: str, whole: bool = False) -> Table:
    """An empty table; '>' before a name puts the column to the right, `whole` folds the first column only."""
    from rich import box
    from rich.table import Table

    padding = 0 if whole else (0, 1)
    table = Table(box=box.SIMPLE_HEAD, title_style="bold", header_style="bold", show_edge=False, padding=padding)
    for name in columns:
        side = "right" if name.startswith(">") else "left"
        no_wrap = whole and bool(table.columns)
        table.add_column(name.removeprefix(">"), justify=side, overflow="fold", no_wrap=no_wrap)
    return table


def add_row(table: Table, *cells: str) -> None:
    """A row of plain text, whose brackets are no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))

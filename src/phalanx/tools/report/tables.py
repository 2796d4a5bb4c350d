# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal, and numbers as people read them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from phalanx.core.registry import Entry

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from phalanx.tools.advisor.advise import Line
    from phalanx.tools.advisor.check import Comparison
    from phalanx.tools.advisor.link import MeasuredLink
    from phalanx.tools.advisor.model import BreakEven
    from phalanx.tools.advisor.probe import Probe

OFTEN = 0.5  # share of the rounds in which a worker was accused, for the table to name it
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


def accused(summary: dict[str, Any]) -> str:
    """The workers that were excluded or outvoted in at least half of the rounds: '0 5 10', '0-14', 'none'."""
    rounds = max(1, summary["rounds"])
    workers = [r["worker"] for r in summary["accused"] if r["excluded"] + r["outvoted"] >= OFTEN * rounds]
    runs: list[list[int]] = []
    for worker in workers:
        if runs and runs[-1][-1] == worker - 1:
            runs[-1].append(worker)
        else:
            runs.append([worker])
    words = [f"{r[0]}-{r[-1]}" if len(r) > 2 else " ".join(map(str, r)) for r in runs]
    return " ".join(words) or "none"


def results_table(results: Iterable[tuple[str, float | None, dict[str, Any]]]) -> Table:
    """One line a run: bytes that a worker sends in a round, groups and rounds that were lost, and who was accused.

    Of all accusations some share was "right", of all Byzantine rows some share was "caught".

    Args:
        results: label, accuracy, summary; the summary is empty for a run that has not ended.
    """
    head = ("run", ">accuracy", ">time\na round", ">bytes\na worker", ">lost\ngroups", ">lost\nrounds", " accused")
    table = _table(*head, ">right", ">caught", whole=True)
    for label, accuracy, summary in results:
        if not summary:
            _add(table, label, percent(accuracy), *"----", " not finished", "-", "-")
            continue
        _add(
            table,
            label,
            percent(accuracy),
            seconds(summary["round_s"]),
            size(summary["bytes_per_worker_round"]),
            str(summary["lost_groups"]),
            str(summary["lost_rounds"]),
            f" {accused(summary)}",
            percent(summary["accusation_precision"], 0),
            percent(summary["accusation_recall"], 0),
        )
    return table


def advice_table(lines: Iterable[Line]) -> Table:
    """One line a scheme: what a worker sends, the predicted parts of a step, and where the scheme wins."""
    head = ("scheme", " estimate", ">bytes\na worker", ">encode", ">wire", ">decode\nand rule", ">step", ">speed-up")
    table = _table(*head, " faster than uncompressed", whole=True)
    for line in lines:
        step = line.step
        _add(
            table,
            line.cost.scheme,
            f" {line.cost.quality}",
            size(line.cost.sent_bytes),
            seconds(step.encode_s),
            seconds(step.wire_s),
            seconds(step.decode_s + step.rule_s),
            seconds(step.seconds),
            f"{line.speedup:.2f}",
            f" {break_even(line.ends)}",
        )
    return table


def break_even(ends: BreakEven) -> str:
    """'below 420 Mbit/s', 'never', 'no difference'."""
    from phalanx.tools.advisor.units import bits

    return ends.wins if ends.bandwidth is None else f"{ends.wins} {bits(ends.bandwidth)}"


def check_table(compared: Iterable[Comparison]) -> Table:
    """One line a run: predicted and measured, part by part."""
    head = ("run", ">workers", ">bytes", ">work", ">encode", ">wire", ">decode\nand rule", ">finish", ">step", ">error")
    table = _table(*head, whole=True)
    for c in compared:
        numbers = []
        for step, sent in ((c.predicted, c.predicted_bytes), (c.measured, c.sent_bytes)):
            parts = (step.work_s, step.encode_s, step.wire_s, step.decode_s + step.rule_s, step.finish_s, step.seconds)
            numbers.append([size(sent), *map(seconds, parts)])
        _add(table, c.label, str(c.workers), *numbers[0], percent(c.error))
        _add(table, "  measured", "", *numbers[1], "")
    return table


def link_table(link: MeasuredLink) -> Table:
    """The measured curves."""
    table = _table(">message", ">all-gather", ">message", ">all-reduce")
    columns = [[(size(b), seconds(s)) for b, s in link.curves[kind]] for kind in ("gather", "reduce")]
    for gathered, reduced in zip_longest(*columns, fillvalue=("", "")):
        _add(table, *gathered, *reduced)
    return table


def costs_table(probe: Probe) -> Table:
    """One line a scheme: what it sends and what a process computes for it."""
    head = ("scheme", " estimate", ">bytes\na worker", ">workers", ">encode", ">pack", ">decode", ">rule", ">finish")
    table = _table(*head, whole=True)
    for cost in probe.costs:
        for i, e in enumerate(cost.efforts):
            first = (cost.scheme, f" {cost.quality}", size(cost.sent_bytes)) if i == 0 else ("", "", "")
            parts = (e.encode_s, e.pack_s, e.decode_s, e.rule_s, e.finish_s)
            _add(table, *first, str(e.workers), *map(seconds, parts))
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


def _table(*columns: str, whole: bool = False) -> Table:
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


def _add(table: Table, *cells: str) -> None:
    """A row of plain text, whose brackets are no markup."""
    from rich.text import Text

    table.add_row(*map(Text, cells))

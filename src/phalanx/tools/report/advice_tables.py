# SPDX-License-Identifier: Apache-2.0
"""The tables that `phalanx probe` and `phalanx advise` print."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import TYPE_CHECKING

from phalanx.tools.advisor.advise import Line
from phalanx.tools.advisor.check import Comparison
from phalanx.tools.advisor.link import MeasuredLink
from phalanx.tools.advisor.model import BreakEven
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.units import bits
from phalanx.tools.report.tables import add_row, make_table, percent, seconds, size

if TYPE_CHECKING:
    from rich.table import Table


def advice_table(lines: Iterable[Line]) -> Table:
    """One line a scheme: what a worker sends, the predicted parts of a step, and where the scheme wins."""
    head = ("scheme", " estimate", ">bytes\na worker", ">encode", ">wire", ">decode\nand rule", ">step", ">speed-up")
    table = make_table(*head, " faster than uncompressed", whole=True)
    for line in lines:
        step = line.step
        add_row(
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
    return ends.wins if ends.bandwidth is None else f"{ends.wins} {bits(ends.bandwidth)}"


def check_table(compared: Iterable[Comparison]) -> Table:
    """One line a run: predicted and measured, part by part."""
    head = ("run", ">workers", ">bytes", ">work", ">encode", ">wire", ">decode\nand rule", ">finish", ">step", ">error")
    table = make_table(*head, whole=True)
    for c in compared:
        numbers = []
        for step, sent in ((c.predicted, c.predicted_bytes), (c.measured, c.sent_bytes)):
            parts = (step.work_s, step.encode_s, step.wire_s, step.decode_s + step.rule_s, step.finish_s, step.seconds)
            numbers.append([size(sent), *map(seconds, parts)])
        add_row(table, c.label, str(c.workers), *numbers[0], percent(c.error))
        add_row(table, "  measured", "", *numbers[1], "")
    return table


def link_table(link: MeasuredLink) -> Table:
    """The measured curves."""
    table = make_table(">message", ">all-gather", ">message", ">all-reduce")
    columns = [[(size(b), seconds(s)) for b, s in link.curves[kind]] for kind in ("gather", "reduce")]
    for gathered, reduced in zip_longest(*columns, fillvalue=("", "")):
        add_row(table, *gathered, *reduced)
    return table


def costs_table(probe: Probe) -> Table:
    """One line a scheme: what it sends and what a process computes for it."""
    head = ("scheme", " estimate", ">bytes\na worker", ">workers", ">encode", ">pack", ">decode", ">rule", ">finish")
    table = make_table(*head, whole=True)
    for cost in probe.costs:
        for i, e in enumerate(cost.efforts):
            first = (cost.scheme, f" {cost.quality}", size(cost.sent_bytes)) if i == 0 else ("", "", "")
            parts = (e.encode_s, e.pack_s, e.decode_s, e.rule_s, e.finish_s)
            add_row(table, *first, str(e.workers), *map(seconds, parts))
    return table

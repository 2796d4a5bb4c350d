# SPDX-License-Identifier: Apache-2.0
"""The error of robust means against the dimension."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import COLOURS, figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet

NAMES = {"geometric_median": "geometric median", "median": "coordinate-wise median"}
WAYS = {"plain": "plain", "detox": "DETOX"}

Errors = dict[int, list[float]]  # dimension -> an error for each draw


def errors(results: Sequence[Result], way: str, rule: str) -> Errors:
    """The errors of one rule, "plain" or with "detox", in all draws that have ended."""
    by_size: defaultdict[int, list[float]] = defaultdict(list)
    for measured in _measured(results):
        for d, error in zip(measured["dims"], measured[way][rule], strict=True):
            by_size[d].append(error)
    return dict(sorted(by_size.items()))


def plot_mean_estimation(results: Sequence[Result], title: str, path: Path) -> None:
    """Error against dimension on a logarithmic scale: the mean of all draws as a line, each draw as a dot."""
    fig = figure(8.5, 5)
    ax: Any = fig.subplots()
    for (rule, name), colour in zip(NAMES.items(), COLOURS, strict=False):
        for way, dash in (("plain", "--"), ("detox", "-")):
            by_size = errors(results, way, rule)
            label = f"{WAYS[way]}, {name}" if way == "detox" else name
            ax.plot(list(by_size), [mean(e) for e in by_size.values()], dash, color=colour, label=label)
            dots = [(d, error) for d, drawn in by_size.items() for error in drawn]
            ax.plot([d for d, _ in dots], [e for _, e in dots], "o", color=colour, markersize=3, alpha=0.6)
    ax.set_yscale("log")
    ax.set_xlabel("dimension")
    ax.set_ylabel("distance from the true mean (lower is better)")
    tidy(ax)
    fig.legend(loc="outside right center", frameon=False)
    save(fig, title, path)


def mean_estimation_tables(results: Sequence[Result]) -> list[Sheet]:
    """By dimension: the mean error of both rules, plain and with DETOX, their ratio, and the votes that were lost."""
    measured = _measured(results)
    if not measured:
        return []
    by_way = {(way, rule): errors(results, way, rule) for way in WAYS for rule in NAMES}
    lost: defaultdict[int, list[int]] = defaultdict(list)
    for of_run in measured:
        for d, count in zip(of_run["dims"], of_run["lost_votes"], strict=True):
            lost[d].append(count)
    rows: list[tuple[Cell, ...]] = []
    for d in by_way["plain", "median"]:
        row: list[Cell] = [str(d)]
        for rule in NAMES:
            plain, detox = (mean(by_way[way, rule][d]) for way in WAYS)
            row += [plain, detox, plain / detox if detox else None]
        rows.append((*row, mean(lost[d])))
    header = ("d", *(word for name in NAMES.values() for word in (name, "with DETOX", "ratio")), "lost votes")
    draws = "1 draw" if len(measured) == 1 else f"mean of {len(measured)} draws"
    return [Sheet(f"distance from the true mean, {draws}", header, tuple(rows))]


def _measured(results: Sequence[Result]) -> list[dict[str, Any]]:
    return [result.summary["measured"] for result in results if result.summary]

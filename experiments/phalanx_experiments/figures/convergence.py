# SPDX-License-Identifier: Apache-2.0
"""Accuracy against bytes and rounds for many methods; related methods have shades of one colour."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet

STEP = 0.05  # targets are multiples of this accuracy
# light to dark: blue, orange, then one colour each; told apart by colour-blind readers as well
SHADES = (("#9ecae1", "#0b3c6f"), ("#fdae6b", "#a63603"))
SINGLE = ("#009E73", "#CC79A7", "#999933", "#882255", "#44AA99")


def plot_convergence(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each model: accuracy against rounds, and against megabytes sent, on a logarithmic scale."""
    styles = styles_of([short(r) for r in results])

    def sent(run: Result) -> list[float]:
        return [b / 1e6 for b in run.curve.bytes_up]

    plot_against(panels_of(results), styles, sent, "MB sent by all workers", title, path)


def plot_against(
    panels: dict[str, list[Result]],
    styles: dict[str, dict[str, Any]],
    cost: Callable[[Result], list[float]],
    unit: str,
    title: str,
    path: Path,
) -> None:
    """A row of two plots for each name: accuracy against rounds, and against a cost, on a logarithmic scale.

    Args:
        styles: of the lines, by the short label.
        cost: of a run at each of its tests.
        unit: what the cost is.
    """
    fig = figure(13, 4.4 * len(panels) + 0.4)
    axes: Any = fig.subplots(len(panels), 2, squeeze=False, sharey=True)
    for (name, runs), (left, right) in zip(panels.items(), axes, strict=True):
        for run in runs:
            accuracy = [100 * a for a in run.curve.accuracy]
            style = styles[short(run)]
            left.plot(run.curve.rounds, accuracy, label=short(run), **style)
            right.plot(cost(run), accuracy, **style)
        left.set_title(name, loc="left", fontsize=11)
        left.set_ylabel("test accuracy (%)")
        left.set_xlabel("round")
        right.set_xlabel(unit)
        right.set_xscale("log")
        for ax in (left, right):
            tidy(ax)
    known = {label: handle for ax in axes[:, 0] for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(known.values()), list(known), loc="outside right center", frameon=False)
    save(fig, title, path)


def convergence_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each model: bytes, and the cost of the last multiple of 5 % that the first run reached."""
    return [_table(name, runs) for name, runs in panels_of(results).items()]


def _table(name: str, runs: Sequence[Result]) -> Sheet:
    first = runs[0]
    target = STEP * int(max(first.curve.accuracy, default=0.0) / STEP + 1e-9)
    _, needed = reached(first, target)
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        rounds, sent = reached(run, target)
        each = run.summary.get("bytes_per_worker_round")
        rows.append(
            (
                short(run),
                None if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
                None if each is None else each / 1e3,
                rounds,
                None if sent is None else sent / 1e6,
                None if sent is None or needed is None else needed / sent,
            )
        )
    goal = f"{100 * target:.0f} %"
    fewer = f"times fewer bytes than {short(first)}"
    header = ("method", "accuracy at the end", "kB a worker and round", f"rounds to {goal}", f"MB to {goal}", fewer)
    return Sheet(f"{name + ': ' if name else ''}bytes to accuracy", header, tuple(rows))


def reached(run: Result, target: float) -> tuple[int | None, float | None]:
    """Rounds and bytes of all workers at the first test with at least this accuracy; None if there was none."""
    curve = run.curve
    for rounds, sent, accuracy in zip(curve.rounds, curve.bytes_up, curve.accuracy, strict=True):
        if accuracy >= target:
            return rounds, sent
    return None, None


def panels_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Runs by the words before ': ' in their labels."""
    panels: dict[str, list[Result]] = {}
    for result in results:
        head, colon, _ = result.label.partition(": ")
        panels.setdefault(head if colon else "", []).append(result)
    return panels


def styles_of(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The colours and dashes of the runs.

    The first run is black, runs with the same first word have shades of one colour, labels with a comma are dashed.
    """
    families: dict[str, list[str]] = {}
    for label in dict.fromkeys(labels):
        families.setdefault(re.split("[ ,]", label)[0], []).append(label)
    shades, single = iter(SHADES), iter(SINGLE * len(labels))
    styles: dict[str, dict[str, Any]] = {}
    for place, members in enumerate(families.values()):
        ends = next(shades, None) if len(members) > 1 else None
        for i, label in enumerate(members):
            colour = "#000000" if place == 0 else next(single) if ends is None else between(*ends, i, len(members))
            styles[label] = {"color": colour, "linewidth": 2.2 if place == 0 else 1.5}
            styles[label]["linestyle"] = "--" if "," in label else "-"
    return styles


def between(light: str, dark: str, i: int, count: int) -> str:
    """The i-th of `count` steps between two colours."""
    share = i / max(1, count - 1)
    ends = [[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in (light, dark)]
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in zip(*ends, strict=True))


def short(result: Result) -> str:
    """The label of a run without its panel."""
    return result.label.rpartition(": ")[2]

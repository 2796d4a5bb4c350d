# SPDX-License-Identifier: Apache-2.0
"""Which step size trains best, by method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx_experiments.figures.convergence import panels_of, styles_of

LAST = 0.25  # share of the rounds whose losses are averaged


def loss_of(result: Result) -> float | None:
    """The mean loss of the last quarter of the rounds, each on a batch before it was trained on; None if not finite.

    In the first pass over the data that is a loss on samples that the model has not seen, without a look at the test
    set.
    """
    losses = [line["loss"] for line in result.metrics()]
    last = losses[-max(1, round(LAST * len(losses))) :]
    return sum(last) / len(last) if last and None not in last else None


def rate_of(result: Result) -> float:
    """The step size in a label "method: lr 0.25"."""
    return float(result.label.rpartition(": lr ")[2])


def plot_tuning(results: Sequence[Result], title: str, path: Path) -> None:
    """Loss against step size, a line for each method."""
    methods = panels_of(results)
    styles = styles_of(list(methods))
    fig = figure(9.5, 5)
    ax: Any = fig.subplots()
    for name, runs in methods.items():
        points = sorted((rate_of(run), loss) for run in runs if (loss := loss_of(run)) is not None)
        if points:
            ax.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, **styles[name])
    ax.set_xscale("log", base=2)
    ax.set_xlabel("step size")
    ax.set_ylabel("training loss, mean of the last quarter of rounds")
    tidy(ax)
    fig.legend(loc="outside right center", frameon=False)
    save(fig, title, path)


def tuning_tables(results: Sequence[Result]) -> list[Sheet]:
    """The best step size of each method, and whether it is the least or greatest that was tried."""
    rows: list[tuple[Cell, ...]] = []
    for name, runs in panels_of(results).items():
        losses = {rate_of(run): loss_of(run) for run in runs}
        known = {rate: loss for rate, loss in losses.items() if loss is not None and math.isfinite(loss)}
        if not known:
            rows.append((name, None, None, None))
            continue
        best = min(known, key=lambda rate: known[rate])
        rows.append((name, best, known[best], best in (min(losses), max(losses))))
    header = ("method", "best step size", "its loss", "at an end of those tried")
    return [Sheet("step sizes", header, tuple(rows))]

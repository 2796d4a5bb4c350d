# SPDX-License-Identifier: Apache-2.0
"""What federated methods reach, in how many rounds, epochs and bytes, and how large a network they end with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import GREY, bar_axes, figure, save
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.tools.report.tables import percent
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import panels_of, short

# by the first word of a method's name; what makes no network out of several is grey
COLOURS = {"one-shot": "#56B4E9", "FedAvg": "#0072B2", "FedProx": "#009E73", "PFNM": "#CC79A7", "FedMA": "#D55E00"}
# section 5.4.6, in per cent: by SGD, and by AMSGrad
BIAS_PUBLISHED = {
    "entire data": (78.71, 75.91),
    "colour balanced": (87.79, 87.81),
    "no bias": (91.23, 88.5),
}


@dataclass(frozen=True)
class Line:
    """The result of a method in one panel, and its cost.

    Args:
        epochs: of each client.
        up, down: bytes of all clients.
        each: accuracies of single clients.
    """

    name: str
    accuracy: float | None
    rounds: int | None = None
    epochs: float | None = None
    up: float | None = None
    down: float | None = None
    parameters: int | None = None
    each: tuple[float, ...] = ()


def lines_of(run: Result) -> list[Line]:
    """The lines of a run: one; for FedAvg also the average after its first round, for local models their ensemble."""
    if run.measures:
        return _alone(run.summary["measured"]) if run.summary else []
    job = run.job
    assert isinstance(job, Run)
    summary, workers = run.summary, job.workers
    epochs = summary.get("local_epochs")
    line = Line(
        short(run),
        accuracy=run.accuracy,
        rounds=summary.get("rounds"),
        epochs=None if epochs is None else epochs / workers,
        up=summary.get("bytes_up"),
        down=summary.get("bytes_down"),
        parameters=summary.get("parameters"),
    )
    logged = run.metrics()
    if short(run) != "FedAvg" or not logged or "accuracy" not in logged[0]:
        return [line]
    first = logged[0]
    once = Line(
        "one-shot average",
        accuracy=first["accuracy"],
        rounds=1,
        epochs=first.get("local_epochs"),
        up=first["bytes_up"],
        down=first["bytes_down"],
        parameters=line.parameters,
    )
    return [once, line]


def _alone(measured: dict[str, Any]) -> list[Line]:
    each, epochs = tuple(measured["accuracies"]), measured["local_epochs"]
    one = measured["parameters"] // len(each)
    return [
        Line(
            "local models, mean",
            accuracy=measured["mean"],
            rounds=0,
            epochs=epochs,
            up=0,
            down=0,
            parameters=one,
            each=each,
        ),
        Line(
            "ensemble",
            accuracy=measured["ensemble"],
            rounds=1,
            epochs=epochs,
            up=measured["bytes_up"],
            down=0,
            parameters=measured["parameters"],
        ),
    ]


def plot_methods(results: Sequence[Result], title: str, path: Path) -> None:
    """A panel for each network and partition, with a bar for each method and a dot for each client by itself."""
    panels = {name: [line for run in runs for line in lines_of(run)] for name, runs in panels_of(results).items()}
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    most = max((len(lines) for lines in panels.values()), default=1)
    fig = figure(6.2 * across, (0.34 * most + 1.1) * down + 0.5)
    axes: Any = fig.subplots(down, across, squeeze=False)
    for ax, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        _bars(ax, lines)
        ax.set_title(name, loc="left", fontsize=11)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    save(fig, title, path)


def _bars(ax: Any, lines: Sequence[Line]) -> None:
    for place, line in enumerate(lines):
        height = 100 * (line.accuracy or 0.0)
        ax.barh(place, height, color=COLOURS.get(re.split("[ ,]", line.name)[0], GREY), height=0.66)
        ax.plot([100 * a for a in line.each], [place] * len(line.each), "o", color="#333333", markersize=3, alpha=0.6)
        words = "-" if line.accuracy is None else f"{height:.1f}"
        top = max([height, *(100 * a for a in line.each)])
        ax.text(top + 1, place, words, va="center", fontsize=9)
    bar_axes(ax, [line.name for line in lines])


def federated_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each panel: accuracy, rounds, epochs, bytes, parameters, and growth over one client's network."""
    return [_table(name, runs) for name, runs in panels_of(results).items()]


HEADER = ("method", "accuracy", "rounds", "local epochs a client", "MB up", "MB down", "parameters", "growth")


def _table(name: str, runs: Sequence[Result]) -> Sheet:
    lines = [line for run in runs for line in lines_of(run)]
    # methods that keep the clients' architecture have the least
    one = min((line.parameters for line in lines if line.parameters), default=None)
    rows: list[tuple[Cell, ...]] = [
        (
            line.name,
            percent(line.accuracy),
            line.rounds,
            line.epochs,
            None if line.up is None else line.up / 1e6,
            None if line.down is None else line.down / 1e6,
            line.parameters,
            None if line.parameters is None or one is None else f"{line.parameters / one:.2f}x",
        )
        for line in lines
    ]
    return Sheet(name or "federated methods", HEADER, tuple(rows))


def bias_tables(results: Sequence[Result]) -> list[Sheet]:
    """The cost of each method, and how far its accuracy is from training on images without a bias."""
    reached = {run.label: run.accuracy for run in results}
    goal = reached.get("no bias")
    rows = []
    for label, accuracy in reached.items():
        behind = None if accuracy is None or goal is None else 100 * (goal - accuracy)
        sgd, amsgrad = (None if p is None else f"{p} %" for p in BIAS_PUBLISHED.get(label, (None, None)))
        rows.append((label, percent(accuracy, 2), behind, sgd, amsgrad))
    header = ("method", "accuracy", "points behind no bias", "published, SGD", "published, AMSGrad")
    return [*federated_tables(results), Sheet("figure 5.4", header, tuple(rows))]

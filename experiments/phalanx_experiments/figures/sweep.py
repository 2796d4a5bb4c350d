# SPDX-License-Identifier: Apache-2.0
"""Accuracy at the end against a number in the labels, such as "E=10: FedMA" or "15 clients: FedAvg"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.tools.report.tables import percent
from phalanx_experiments.figures.convergence import panels_of, short
from phalanx_experiments.figures.federated_curves import STYLES

UNITS = {"E": "local epochs a round (E)", "clients": "clients"}


def plot_sweep(results: Sequence[Result], title: str, path: Path) -> None:
    """A line for each method over the numbers."""
    panels = panels_of(results)
    fig = figure(7.5, 4.6)
    ax: Any = fig.subplots()
    for method in dict.fromkeys(map(short, results)):
        runs = [(_number(name), run) for name, runs in panels.items() for run in runs if short(run) == method]
        points = [(x, 100 * run.accuracy) for x, run in runs if run.accuracy is not None]
        ax.plot([x for x, _ in points], [y for _, y in points], label=method, linewidth=1.6, **STYLES[method])
    ax.set_xticks([_number(name) for name in panels])
    ax.set_xlabel(_unit(results))
    ax.set_ylabel("test accuracy (%)")
    tidy(ax)
    ax.legend(frameon=False)
    save(fig, title, path)


def sweep_tables(results: Sequence[Result]) -> list[Sheet]:
    """A line for each number, a column for each method: accuracies, and parameters of the network at the end."""
    methods = list(dict.fromkeys(map(short, results)))
    header = (_unit(results), *methods)
    accuracies: list[tuple[Cell, ...]] = []
    parameters: list[tuple[Cell, ...]] = []
    for name, runs in panels_of(results).items():
        by_label, word = {short(run): run for run in runs}, f"{_number(name):g}"
        accuracies.append((word, *(percent(by_label[m].accuracy, 2) if m in by_label else None for m in methods)))
        parameters.append((word, *(by_label[m].summary.get("parameters") if m in by_label else None for m in methods)))
    return [
        Sheet("accuracy at the end", header, tuple(accuracies)),
        Sheet("parameters at the end", header, tuple(parameters)),
    ]


def _number(words: str) -> float:
    match = re.search(r"[0-9.]+", words)
    assert match is not None
    return float(match[0])


def _unit(results: Sequence[Result]) -> str:
    """The unit of the numbers, from the letters around them."""
    words = re.sub("[0-9.= ]", "", next(iter(panels_of(results)), ""))
    return UNITS.get(words, words)

# SPDX-License-Identifier: Apache-2.0
"""Methods against attacks: one table and one picture of final accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.report.tables import percent
from phalanx_experiments.figures.convergence import panels_of, short

DARK = 0.6  # accuracy from which on a cell is so dark that its number is white


def grid_tables(results: Sequence[Result]) -> list[Sheet]:
    """A line for each method, a column for each panel of the labels: the accuracy at the end."""
    methods, panels, reached = _cells(results)
    rows = tuple((method, *(_word(reached, method, panel) for panel in panels)) for method in methods)
    return [Sheet("accuracy at the end", ("method", *panels), rows)]


def plot_grid(results: Sequence[Result], title: str, path: Path) -> None:
    """The table in shades of blue; cells without a run stay white."""
    methods, panels, reached = _cells(results)
    fig = figure(3.2 + 1.25 * len(panels), 1.4 + 0.3 * len(methods))
    ax: Any = fig.subplots()
    nothing = float("nan")
    table = [[reached.get((method, panel)) for panel in panels] for method in methods]
    ax.imshow(
        [[nothing if a is None else a for a in row] for row in table], cmap="Blues", vmin=0, vmax=1, aspect="auto"
    )
    for y, row in enumerate(table):
        for x, accuracy in enumerate(row):
            if accuracy is not None:
                colour = "white" if accuracy > DARK else "black"
                ax.text(x, y, f"{100 * accuracy:.1f}", ha="center", va="center", color=colour, fontsize=9)
    ax.set_xticks(range(len(panels)), [panel.replace(", ", ",\n") for panel in panels], fontsize=9)
    ax.set_yticks(range(len(methods)), methods, fontsize=9)
    ax.xaxis.tick_top()
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    save(fig, title, path)


def _cells(results: Sequence[Result]) -> tuple[list[str], list[str], dict[tuple[str, str], float | None]]:
    """Methods, panels, and the accuracy of each method in each panel; None for runs that have not begun."""
    panels = panels_of(results)
    reached = {(short(run), panel): run.accuracy for panel, runs in panels.items() for run in runs}
    return list(dict.fromkeys(map(short, results))), list(panels), reached


def _word(reached: dict[tuple[str, str], float | None], method: str, panel: str) -> str | None:
    accuracy = reached.get((method, panel))
    return None if accuracy is None else percent(accuracy)

# SPDX-License-Identifier: Apache-2.0
"""What makes a backdoor stronger or weaker: runs labelled "panel: value"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.report.backdoors import main_accuracy, rates, window, within
from phalanx.report.collect import Result
from phalanx.report.plots import COLOURS, GREY, figure, save, tidy
from phalanx.report.sheet import Sheet

NO_ATTACK = "no attack"


def panels(results: Sequence[Result]) -> dict[str, list[tuple[str, Result]]]:
    """(value, run) by panel, in the order of the labels."""
    found: dict[str, list[tuple[str, Result]]] = {}
    for result in results:
        panel, _, value = result.name.rpartition(": ")
        found.setdefault(panel, []).append((value, result))
    return found


def backdoor_sweep_tables(results: Sequence[Result]) -> list[Sheet]:
    """A line a run: attack success, accuracy on edge cases and on the main task, in the later half of the attack."""
    rows = []
    for panel, runs in panels(results).items():
        for value, run in runs:
            found = [within(rates(run, key), window(run)) for key in ("attack_success", "edge_accuracy")]
            rows.append((panel, value, run.job.seed, *map(_percent, (*found, main_accuracy(run)))))
    words = ("attack success (%)", "edge cases right (%)", "main accuracy (%)")
    return [
        Sheet("means of the later half of the rounds with attacks", ("panel", "value", "seed", *words), tuple(rows))
    ]


def plot_backdoor_sweeps(results: Sequence[Result], title: str, path: Path) -> None:
    """Attack success by round, a panel for each sweep; runs without an attack in grey."""
    found = panels(results)
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    made = figure(6.4 * columns, 3.6 * lines)
    axes: Any = made.subplots(lines, columns, squeeze=False, sharey=True)
    for i, (panel, runs) in enumerate(found.items()):
        ax = axes[i // columns][i % columns]
        for k, (value, run) in enumerate(runs):
            points = rates(run)
            colour, style = (GREY, ":") if NO_ATTACK in value else (COLOURS[k % len(COLOURS)], "-")
            ax.plot([x for x, _ in points], [100 * y for _, y in points], style, color=colour, label=value, lw=1.4)
        ax.set_title(panel, loc="left", fontsize=10)
        ax.set_ylabel("attack success (%)")
        ax.set_xlabel("round")
        tidy(ax)
        ax.legend(frameon=False, fontsize=8)
    for i in range(len(found), lines * columns):
        axes[i // columns][i % columns].axis("off")
    save(made, title, path)


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)

# SPDX-License-Identifier: Apache-2.0
"""Predicted steps and examples a second against the number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.tools.report.plots import COLOURS, DASHES, figure, save, tidy

if TYPE_CHECKING:
    from phalanx.tools.advisor.growth import Growth


def plot_growth(grown: Growth, title: str, batch: int, path: Path) -> None:
    """A line for each scheme; a simulation is drawn as dots.

    Args:
        batch: examples of one worker in a step, were no work done twice; n workers take n times as many.
    """
    lines = grown.advices[0].lines
    fig = figure(12, 4.8 + 0.2 * len(lines))
    left, right = fig.subplots(1, 2)
    for j, line in enumerate(lines):
        dash = DASHES[j // len(COLOURS) % len(DASHES)]
        style: dict[str, Any] = {"color": COLOURS[j % len(COLOURS)], "linestyle": dash, "linewidth": 1.6}
        steps = [advice.lines[j].step.seconds for advice in grown.advices]
        left.plot(grown.workers, steps, label=line.cost.scheme, **style)
        right.plot(grown.workers, [batch * n / s for n, s in zip(grown.workers, steps, strict=True)], **style)
        if grown.simulated is not None:
            dots = [column[j] for column in grown.simulated]
            left.plot(grown.workers, dots, "o", color=style["color"], markersize=3.5)
    for ax, name in ((left, "seconds a step"), (right, "examples a second")):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(grown.workers, [str(n) for n in grown.workers])
        ax.set_xlabel("workers")
        ax.set_ylabel(name)
        tidy(ax)
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save(fig, title, path)

# SPDX-License-Identifier: Apache-2.0
"""Singular values of a gradient over training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.observed import observed
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.training.observers.spectrum import Spectrum
from phalanx_experiments.figures.convergence import between

EARLY, LATE = "#9ecae1", "#08204a"
FLOOR = 1e-3  # of the largest singular value; below it a curve is not drawn

Spectra = dict[int, list[float]]  # round -> singular values, largest first


def spectra(results: Sequence[Result]) -> list[tuple[str, Spectra]]:
    """For each run, observer and tensor: a name, and its singular values by round."""
    panels = []
    for result in results:
        for observer, rounds in observed(result, Spectrum).items():
            for layer in next(iter(rounds.values())):
                values = {index: by_layer[layer] for index, by_layer in rounds.items() if by_layer[layer]}
                panels.append((f"{result.label}, {layer}, reshape={observer.reshape!r}", values))
    return panels


def plot_spectrum(results: Sequence[Result], title: str, path: Path) -> None:
    """A panel for each tensor and reshape: singular values over the largest by round, later rounds darker."""
    panels = spectra(results)
    fig = figure(6.2 * max(1, len(panels)), 4.6)
    axes: Any = fig.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for ax, (name, values) in zip(axes, panels, strict=False):
        for i, (index, sigma) in enumerate(values.items()):
            relative = [s / sigma[0] for s in sigma if s > FLOOR * sigma[0]]
            marker = "o" if len(relative) <= 32 else None
            colour = between(EARLY, LATE, i, len(values))
            ax.plot(range(1, len(relative) + 1), relative, color=colour, marker=marker, markersize=3, label=f"{index}")
        ax.set_title(name, loc="left", fontsize=11)
        ax.set_xlabel("number of the singular value")
        ax.set_ylabel("singular value / the largest")
        ax.set_ylim(0, 1.02)
        ax.locator_params(axis="x", integer=True)
        tidy(ax)
        ax.legend(title="round", frameon=False, fontsize=9)
    save(fig, title, path)


def spectrum_tables(results: Sequence[Result]) -> list[Sheet]:
    """A line for each round: the norm, the share of its square in the largest singular values, and |X|_* / |X|_F."""
    header = ("round", "|X|_F", "in the largest", "in the largest 3", "|X|_* / |X|_F", "sqrt(rank)")
    sheets = []
    for name, values in spectra(results):
        rows: list[tuple[Cell, ...]] = []
        for index, sigma in values.items():
            squares = [s * s for s in sigma]
            norm = sum(squares) ** 0.5
            top = [f"{100 * sum(squares[:k]) / sum(squares):.1f} %" for k in (1, 3)]
            rows.append((str(index), norm, *top, sum(sigma) / norm, len(sigma) ** 0.5))
        sheets.append(Sheet(name, header, tuple(rows)))
    return sheets

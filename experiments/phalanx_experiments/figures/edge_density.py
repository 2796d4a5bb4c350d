# SPDX-License-Identifier: Apache-2.0
"""Histograms of log densities, ordinary examples beside edge-case ones: figure 8.1."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import COLOURS, GREY, figure, save, tidy
from phalanx.tools.report.sheet import Sheet

NAMES = {"train": "training part", "test": "test part", "edge": "edge cases", "edge_test": "edge cases, test"}


def plot_edge_density(results: Sequence[Result], title: str, path: Path) -> None:
    """One panel for each measurement that has ended: the share of each part's examples in each bin."""
    ended = [result for result in results if result.summary]
    fig = figure(8.5, max(3.6, 3.2 * len(ended) + 0.6))
    panels: Any = fig.subplots(max(1, len(ended)), 1, squeeze=False)
    for ax, result in zip(panels[:, 0], ended, strict=False):
        measured = result.summary["measured"]
        for (part, name), colour in zip(NAMES.items(), COLOURS, strict=False):
            counts, size = measured["counts"][part], measured["sizes"][part]
            left = f" ({measured['left'][part]} further left)" if measured["left"][part] else ""
            shares = [100 * count / max(1, size) for count in counts]
            ax.stairs(shares, measured["marks"], color=colour, fill=True, alpha=0.25)
            ax.stairs(shares, measured["marks"], color=colour, label=f"{name}{left}")
        ax.axvline(measured["threshold"], color=GREY, linestyle="--", label="threshold")
        ax.set_title(result.label, loc="left", fontsize=11)
        ax.set_xlabel("log density of the model's outputs")
        ax.set_ylabel("share of the part (%)")
        ax.legend(frameon=False, fontsize=9)
        tidy(ax)
    save(fig, title, path)


def edge_density_tables(results: Sequence[Result]) -> list[Sheet]:
    """A line for each measurement: accuracy, separation, shares below the threshold, and median log densities."""
    rows = []
    for result in results:
        if result.summary:
            measured = result.summary["measured"]
            below = [100 * measured["below"][part] for part in NAMES]
            medians = [measured["median"][part] for part in NAMES]
            rows.append((result.label, 100 * measured["accuracy"], measured["separation"], *below, *medians))
    header = (
        "data",
        "accuracy (%)",
        "separation",
        *(f"{name} below (%)" for name in NAMES.values()),
        *(f"{name}, median" for name in NAMES.values()),
    )
    return [Sheet("log densities of the outputs", header, tuple(rows))] if rows else []

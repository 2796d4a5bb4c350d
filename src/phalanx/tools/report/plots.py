# SPDX-License-Identifier: Apache-2.0
"""Curves and final accuracies or scores as PNG; matplotlib is imported here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.core.optional import optional
from phalanx.tools.report.collect import Result
from phalanx.tools.report.score import ACCURACY, Score, common_score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours and two of Tol's, told apart by colour-blind readers as well; no yellow on white paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999933", "#882255")
DASHES = ("-", "--", ":", "-.")
REFERENCE = "no attack"  # a run whose label holds these words is drawn in grey, in every panel
GREY = "#888888"


def plot_study(results: Sequence[Result], title: str, path: Path) -> None:
    """One line of panels for each "panel: " among the labels: accuracy against rounds, and the final accuracies."""
    panels = _panels(results)
    heights = [0.34 * len(runs) + 1.2 for _, runs in panels]
    fig = figure(11, max(4.2, sum(max(3.0, h) for h in heights) + 0.6))
    rows: Any = fig.subplots(len(panels), 2, squeeze=False, width_ratios=(1.35, 1))
    styles = _styles(results)
    for (name, runs), (left, right) in zip(panels, rows, strict=True):
        _curves(left, runs, styles, "rounds")
        _bars(right, runs, styles)
        left.set_title(name, loc="left", fontsize=11)
        right.set_title("at the end", loc="left", fontsize=11)
        left.set_xlabel("round")
        left.locator_params(axis="x", integer=True)
    save(fig, title, path)


def plot_comparison(results: Sequence[Result], title: str, path: Path) -> None:
    """Accuracy against rounds, bytes and seconds, with one legend."""
    styles = _styles(results)
    lines = -(-len(results) // 3)
    fig = figure(14, 4.6 + 0.22 * lines)
    axes: Any = fig.subplots(1, 3, sharey=True)
    names = {"rounds": "round", "bytes_up": "MB sent by all workers", "seconds": "seconds"}
    for ax, (measure, name) in zip(axes, names.items(), strict=True):
        _curves(ax, list(results), styles, measure, 1e-6 if measure == "bytes_up" else 1.0)
        ax.set_xlabel(name)
        if measure != "rounds":
            ax.set_ylabel("")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save(fig, title, path)


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    # without pyplot: nothing global, no window, no backend to choose
    canvas = optional("matplotlib.backends.backend_agg", "a plot", "matplotlib", "plots")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), layout="constrained")
    canvas.FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, title: str, path: Path) -> None:
    """Writes a figure under a title as PNG."""
    fig.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=120)


def _panels(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Runs by the words before ': ' in their labels; references by themselves join the panels that have none."""
    panels: dict[str, list[Result]] = {}
    for result in results:
        head, colon, _ = result.label.partition(": ")
        panels.setdefault(head if colon else "", []).append(result)
    apart = [name for name, runs in panels.items() if all(map(_is_reference, runs))]
    if len(panels) == 1 or len(apart) == len(panels):
        return [("round by round", list(results))]
    shared = [r for name in apart for r in panels[name]]
    return [
        (name, runs if any(map(_is_reference, runs)) else [*shared, *runs])
        for name, runs in panels.items()
        if name not in apart
    ]


def _is_reference(result: Result) -> bool:
    return REFERENCE in result.label


def _short(result: Result) -> str:
    """A label without its panel, unless the panel says what the run is."""
    head, colon, rest = result.label.partition(": ")
    return f"{rest}, {head}" if colon and REFERENCE in head else rest or head


def _styles(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """A colour and dash for each short label, the same in every panel."""
    styles: dict[str, dict[str, Any]] = {}
    count = 0
    for result in results:
        name = _short(result)
        if name in styles:
            continue
        if _is_reference(result):
            styles[name] = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 2.4}
            continue
        dash = DASHES[count // len(COLOURS) % len(DASHES)]
        styles[name] = {"color": COLOURS[count % len(COLOURS)], "linestyle": dash, "linewidth": 1.6}
        count += 1
    return styles


def _curves(
    ax: Axes, runs: Sequence[Result], styles: dict[str, dict[str, Any]], measure: str, factor: float = 1.0
) -> None:
    for result in runs:
        x = [factor * value for value in getattr(result.curve, measure)]
        shown = result.score.factor
        y = [math.nan if a is None else shown * a for a in result.curve.accuracy]
        marker = "o" if len(x) == 1 else None
        ax.plot(x, y, label=_short(result), marker=marker, **styles[_short(result)])
        ranges = [(math.nan, math.nan) if pair is None else pair for pair in result.curve.clients]
        if any(pair is not None for pair in result.curve.clients):
            # from the client that is served worst to the one that is served best
            low, high = ([shown * value for value in values] for values in zip(*ranges, strict=True))
            ax.fill_between(x, low, high, color=styles[_short(result)]["color"], alpha=0.15, linewidth=0)
    score = common_score(result.score for result in runs)
    if score == ACCURACY:
        ax.set_ylim(0, 101)
    ax.set_xlim(left=0)
    ax.set_ylabel(_axis(score))
    tidy(ax)


def _bars(ax: Axes, runs: Sequence[Result], styles: dict[str, dict[str, Any]]) -> None:
    """Final accuracies; the names beside the bars are the legend of the curves."""
    score = common_score(result.score for result in runs)
    heights = [r.score.factor * (r.accuracy or 0.0) for r in runs]
    places = list(range(len(runs)))
    ax.barh(places, heights, color=[styles[_short(r)]["color"] for r in runs], height=0.66)
    for place, result, height in zip(places, runs, heights, strict=True):
        if score == ACCURACY:
            words = "-" if result.accuracy is None else f"{height:.1f}"
            ax.text(height + 1, place, words, va="center", fontsize=9)
        else:
            words = result.score.words(result.accuracy)
            words = words if score is not None else f"{result.score.name} {words}"
            ax.annotate(words, (max(0.0, height), place), (3, 0), textcoords="offset points", va="center", fontsize=9)
    bar_axes(ax, [_short(r) for r in runs])
    if score != ACCURACY:
        ax.autoscale(axis="x")
        ax.margins(x=0.25)
        ax.xaxis.set_major_locator(_locator())
        ax.set_xlabel(_axis(score))


def _axis(score: Score | None) -> str:
    return "score" if score is None else f"test {score.title}"


def _locator() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)


def bar_axes(ax: Axes, names: Sequence[str]) -> None:
    """Axes of horizontal bars of accuracies with their numbers, the first of the names on top."""
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 112)
    ax.set_xticks(range(0, 101, 20))
    ax.set_xlabel("test accuracy (%)")
    tidy(ax)
    ax.grid(visible=False, axis="y")


def tidy(ax: Axes) -> None:
    """A light grid, and no frame above and to the right."""
    ax.grid(visible=True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)

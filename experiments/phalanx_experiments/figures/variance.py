# SPDX-License-Identifier: Apache-2.0
"""Variance of entrywise and of spectral sparsification, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.observed import observed
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.training.observers.variance import RESHAPES, Variance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 8  # layers whose names fit side by side
COLOURS = {"entries": "#000000", "paper": "#0072B2", "matrix": "#D55E00", "square": "#009E73"}

Looks = dict[str, dict[int, dict[str, Any]]]  # layer -> round -> what was measured of it


def looks(result: Result) -> Looks:
    """The records of the run's first variance observer, without rounds in which a gradient was zero or not finite."""
    by_round = next(iter(observed(result, Variance).values()), {})
    layers = dict.fromkeys(name for values in by_round.values() for name in values)
    every = {name: {index: values[name] for index, values in by_round.items() if values[name]} for name in layers}
    return {name: values for name, values in every.items() if values}


def ratio(look: dict[str, Any], reshape: str) -> float:
    """(n + m) |X|_*^2 / |X|_{1,1}^2: at most one where singular values vary less at equal floats."""
    spectral = look["spectral"][reshape]
    return (spectral["rows"] + spectral["columns"]) * (spectral["norm"] / look["entries"]["norm"]) ** 2


def plot_variance(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each run: the condition of theorem 3.8, and second moments at equal bytes, by layer."""
    by_run = [(result.label, looks(result)) for result in results]
    fig = figure(14, sum(4.6 if len(layers) <= FEW else 5.6 for _, layers in by_run) + 0.4)
    axes: Any = fig.subplots(len(by_run), 2, squeeze=False)
    for (label, layers), (left, right) in zip(by_run, axes, strict=True):
        for i, reshape in enumerate(RESHAPES):
            values = [[ratio(look, reshape) for look in rounds.values()] for rounds in layers.values()]
            _ranges(left, values, 0.2 * (i - 1), COLOURS[reshape], f"reshape={reshape!r}")
        left.axhline(1.0, color="#888888", linewidth=1.2)
        left.set_ylabel("$(n + m)\\,|X|_*^2\\;/\\;|X|_{1,1}^2$")
        left.set_title(f"{label}: below 1 singular values vary less, counting floats", loc="left", fontsize=11)
        for i, kind in enumerate(("entries", *RESHAPES)):
            moments = [[_part(look, kind) for look in rounds.values()] for rounds in layers.values()]
            name = "entries" if kind == "entries" else f"reshape={kind!r}"
            shift = 0.2 * (i - 1.5)
            _ranges(right, [[part["bytes"] for part in parts] for parts in moments], shift, COLOURS[kind], name)
            means = [fmean(part["measured"] for part in parts) for parts in moments]
            places = [place + shift for place in range(len(means))]
            right.plot(places, means, "o", markersize=8, fillstyle="none", color=COLOURS[kind])
        right.set_ylabel("$E|\\hat X|^2\\;/\\;|X|^2$")
        right.set_title(f"{label}: second moment at equal bytes, lower is better", loc="left", fontsize=11)
        for ax in (left, right):
            _dress(ax, [f"{name.removesuffix('.weight')}\n{_form(rounds)}" for name, rounds in layers.items()])
    _legend(fig, axes[0][1])
    save(fig, title, path)


def _dress(ax: Axes, names: Sequence[str]) -> None:
    """Sets the scales of the axes and the names of the layers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    few = len(names) <= FEW
    ax.set_xticks(range(len(names)), names, fontsize=9 if few else 7, rotation=0 if few else 90)
    tidy(ax)
    ax.grid(visible=False, axis="x")


def _legend(fig: Figure, ax: Axes) -> None:
    """Draws the legend of colours and marks below all plots."""
    from matplotlib.lines import Line2D

    words = {"v": "first look", "s": "last look; the line: all", "o": "measured, mean of all"}
    grey = {"color": "#666666", "linestyle": "", "markersize": 6}
    marks = [Line2D([], [], marker=m, fillstyle="none" if m == "o" else "full", label=words[m], **grey) for m in words]
    fig.legend(handles=[*ax.get_legend_handles_labels()[0], *marks], loc="outside lower center", ncols=7, frameon=False)


def variance_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each run: a table by layer and reshape, and one of the whole gradient by round."""
    sheets = []
    for result in results:
        layers = looks(result)
        if layers:
            sheets += [_by_layer(result.label, layers), _by_round(result.label, layers)]
    return sheets


def _by_layer(label: str, layers: Looks) -> Sheet:
    rows: list[tuple[Cell, ...]] = []
    for name, rounds in layers.items():
        for reshape in RESHAPES:
            looks_of_layer = list(rounds.values())
            parts = [look["spectral"][reshape] for look in looks_of_layer]
            ratios = [ratio(look, reshape) for look in looks_of_layer]
            rows.append(
                (
                    name,
                    reshape,
                    f"{parts[0]['rows']} x {parts[0]['columns']}",
                    f"{sum(part['holds'] for part in parts)} of {len(parts)}",
                    ratios[0],
                    ratios[-1],
                    fmean(look["entries"]["floats"] for look in looks_of_layer),
                    fmean(look["entries"]["bytes"] for look in looks_of_layer),
                    fmean(look["entries"]["measured"] for look in looks_of_layer),
                    fmean(part["bytes"] for part in parts),
                    fmean(part["measured"] for part in parts),
                )
            )
    header = (
        "layer",
        "reshape",
        "n x m",
        "3.8 holds",
        "ratio, first",
        "last",
        "entries, equal floats",
        "entries",
        "measured entries",
        "spectral",
        "measured spectral",
    )
    return Sheet(
        f"{label}: E|Xhat|^2 / |X|^2 by layer at equal bytes, mean of the rounds looked at", header, tuple(rows)
    )


def _by_round(label: str, layers: Looks) -> Sheet:
    """Second moments of the whole gradient, each layer at the same share of its bytes."""
    rounds = sorted({index for looks_of_round in layers.values() for index in looks_of_round})
    rows: list[tuple[Cell, ...]] = []
    for index in rounds:
        looks_of_round = [look[index] for look in layers.values() if index in look]
        whole = sum(look["frobenius"] ** 2 for look in looks_of_round)

        def total(kind: str, key: str, looks_of_round: list[Any] = looks_of_round, whole: float = whole) -> float:
            return sum(look["frobenius"] ** 2 * _part(look, kind)[key] for look in looks_of_round) / whole

        theory = [total("entries", "floats"), *(total(kind, "bytes") for kind in ("entries", *RESHAPES))]
        rows.append((str(index), *theory, *(total(kind, "measured") for kind in ("entries", *RESHAPES))))
    measured = [f"{kind}, measured" for kind in ("entries", *RESHAPES)]
    header = ("round", "entries, equal floats", "entries", *RESHAPES, *measured)
    return Sheet(f"{label}: E|Xhat|^2 / |X|^2 of all these layers together, at equal bytes", header, tuple(rows))


def _part(look: dict[str, Any], kind: str) -> dict[str, Any]:
    return look["entries"] if kind == "entries" else look["spectral"][kind]


def _form(rounds: dict[int, dict[str, Any]]) -> str:
    return "x".join(map(str, next(iter(rounds.values()))["shape"]))


def _ranges(ax: Axes, values: Sequence[Sequence[float]], shift: float, colour: str, label: str) -> None:
    """Draws for each position a line over all values, with marks at the first and the last."""
    for place, several in enumerate(values):
        ax.plot([place + shift] * 2, [min(several), max(several)], color=colour, linewidth=2.5, alpha=0.6)
    places = [place + shift for place in range(len(values))]
    ax.plot(places, [v[0] for v in values], "v", color=colour, markersize=5)
    ax.plot(places, [v[-1] for v in values], "s", color=colour, markersize=5, label=label)

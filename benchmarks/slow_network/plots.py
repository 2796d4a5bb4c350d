# SPDX-License-Identifier: Apache-2.0
"""The two figures: stacked bars as in figure 3.1, and accuracy against seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phalanx.tools.report.plots import COLOURS, DASHES
from slow_network.breakdown import PARTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# figure 3.1 from bottom to top: solid, dotted, faded; decoding, which it has not, is hatched
LOOKS: dict[str, dict[str, Any]] = {
    "computation_s": {"alpha": 1.0},
    "encoding_s": {"alpha": 0.75, "hatch": "...."},
    "communication_s": {"alpha": 0.35},
    "decoding_s": {"alpha": 0.75, "hatch": "////"},
}

# what `scaling` predicts, from which probe and how
PREDICTED = (
    ("base", "wire_s", "model, from few hosts"),
    ("base", "simulated_s", "simulation, from few hosts"),
    ("base", "shared_s", "simulation of shared cores"),
    ("own", "wire_s", "model, from as many hosts"),
)


def plot_breakdown(lines: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A panel for each number of workers and rate, a stacked bar for each scheme."""
    workers = list(dict.fromkeys(line["workers"] for line in lines))
    rates = list(dict.fromkeys(line["rate"] for line in lines))
    labels = list(dict.fromkeys(line["label"] for line in lines))
    figure = _figure(4.2 * len(rates) + 1.5, (0.32 * len(labels) + 1.3) * len(workers) + 0.8)
    panels: Any = figure.subplots(len(workers), len(rates), squeeze=False, sharey=True, sharex="col")
    places = {label: place for place, label in enumerate(labels)}
    for i, n in enumerate(workers):
        for j, rate in enumerate(rates):
            ax = panels[i][j]
            for line in lines:
                if (line["workers"], line["rate"]) == (n, rate):
                    _bar(ax, places[line["label"]], line, COLOURS[places[line["label"]] % len(COLOURS)])
            ax.set_title(f"{n} workers, {rate}", loc="left", fontsize=11)
            ax.set_yticks(list(places.values()), labels)
            ax.set_ylim(len(labels) - 0.5, -0.5)
            _tidy(ax)
    for ax in panels[-1]:
        ax.set_xlabel("milliseconds a step")
    figure.legend(handles=_legend(), loc="outside lower center", ncols=len(PARTS), frameon=False)
    _save(figure, title, path)


def _bar(ax: Any, place: int, line: dict[str, Any], colour: str) -> None:
    left = 0.0
    for part in PARTS:
        width = 1e3 * line[part]
        ax.barh(place, width, left=left, height=0.7, color=colour, edgecolor="white", linewidth=0.3, **LOOKS[part])
        left += width
    ax.text(left, place, f" {left:.0f}", va="center", fontsize=8)
    ax.margins(x=0.12)


def _legend() -> list[Any]:
    from matplotlib.patches import Patch

    return [
        Patch(facecolor="#666666", edgecolor="white", label=part.removesuffix("_s"), **LOOKS[part]) for part in PARTS
    ]


def plot_convergence(report: dict[str, Any], title: str, path: Path) -> None:
    """Accuracy against seconds, a line for each scheme and seed, and the target."""
    figure = _figure(9, 5.4)
    ax: Any = figure.subplots()
    for i, (label, scheme) in enumerate(report["schemes"].items()):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": "-" if i < len(COLOURS) else "--", "linewidth": 1.3}
        for first, line in zip((True, *[False] * len(scheme["seeds"])), scheme["seeds"].values(), strict=False):
            ax.plot(line["seconds"], [100 * a for a in line["curve"]], label=label if first else None, **style)
    ax.axhline(100 * report["target"], color="#888888", linewidth=0.8)
    ax.set_xlim(left=0)
    ax.set_xlabel("seconds")
    ax.set_ylabel("test accuracy (%)")
    _tidy(ax)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, title, path)


def plot_scaling(lines: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A panel for each scheme: measured seconds on the wire by number of workers, and what was predicted."""
    labels = list(dict.fromkeys(line["label"] for line in lines))
    wide = 4
    figure = _figure(4.2 * wide, 3.2 * -(-len(labels) // wide) + 0.8)
    panels: Any = figure.subplots(-(-len(labels) // wide), wide, squeeze=False, sharex=True).flatten()
    for ax, label in zip(panels, labels, strict=False):
        of_label = [line for line in lines if line["label"] == label]
        for i, (name, key, words) in enumerate(PREDICTED):
            told = [line for line in of_label if name in line]
            points = [line["workers"] for line in told], [1e3 * line[name][key] for line in told]
            ax.plot(*points, DASHES[i], color=COLOURS[i], label=words, linewidth=1.3)
        took = [line["workers"] for line in of_label], [1e3 * line["measured"]["wire_s"] for line in of_label]
        ax.plot(*took, "o", color="black", label="measured", markersize=5)
        ax.set_title(label, loc="left", fontsize=8, wrap=True)
        ax.set_ylim(bottom=0)
        ax.set_xticks(sorted({line["workers"] for line in lines}))
        _tidy(ax)
    for ax in panels[len(labels) :]:
        ax.set_axis_off()
    for ax in panels[max(0, len(labels) - wide) : len(labels)]:
        ax.set_xlabel("workers")
    figure.supylabel("milliseconds on the wire, a step")
    handles, words = panels[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=5, frameon=False)
    _save(figure, title, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, title: str, path: Path) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _tidy(ax: Any) -> None:
    ax.grid(visible=True, color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)

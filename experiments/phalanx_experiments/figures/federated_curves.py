# SPDX-License-Identifier: Apache-2.0
"""Accuracy of federated methods against rounds and bytes, measured and published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import GREY, figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.tools.report.tables import percent
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import panels_of, short
from phalanx_experiments.figures.federated import COLOURS, federated_tables, lines_of

STYLES: dict[str, dict[str, Any]] = {
    name: {"color": COLOURS[name], "marker": marker}
    for name, marker in (("FedAvg", "o"), ("FedProx", "s"), ("FedMA", "D"))
}
# tables 5.1 and 5.2: accuracy in per cent, the best E, and growth
PUBLISHED: dict[str, dict[str, tuple[float, int | None, float]]] = {
    "VGG-9": {
        "FedAvg": (86.29, 20, 1.0),
        "FedProx": (85.32, 20, 1.0),
        "ensemble": (75.29, None, 16.0),
        "FedMA": (87.53, 150, 1.11),
    },
    "LSTM": {
        "FedAvg": (46.63, 2, 1.0),
        "FedProx": (45.83, 5, 1.0),
        "ensemble": (46.06, None, 66.0),
        "FedMA": (49.07, 5, 1.06),
    },
}
# tables 5.4 to 5.7: neurons of each layer, of a client and of FedMA's network
WIDTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "VGG-9": ((32, 47), (64, 79), (128, 143), (128, 143), (256, 271), (256, 271), (512, 527), (512, 527)),
    "LSTM": ((8, 21), (256, 257)),
}


def plot_convergence(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each network: accuracy by rounds, and by megabytes in both directions; the ensemble is dashed.

    FedMA has a network that can be tested at the end of each pass.
    """
    panels = panels_of(results)
    fig = figure(11, 3.9 * len(panels) + 0.4)
    axes: Any = fig.subplots(max(1, len(panels)), 2, squeeze=False, sharey="row")
    for (name, runs), (left, right) in zip(panels.items(), axes, strict=False):
        for run in runs:
            if run.measures:
                ensemble = run.summary.get("measured", {}).get("ensemble")
                if ensemble is not None:
                    for ax in (left, right):
                        ax.axhline(100 * ensemble, color=GREY, linestyle="--", label="ensemble")
                continue
            style = {"markersize": 4, "linewidth": 1.6, **STYLES[short(run)]}
            accuracy = [100 * a for a in run.curve.accuracy]
            sent = [(u + d) / 1e6 for u, d in zip(run.curve.bytes_up, run.curve.bytes_down, strict=True)]
            left.plot(run.curve.rounds, accuracy, label=short(run), **style)
            right.plot(sent, accuracy, **style)
        left.set_title(name, loc="left", fontsize=11)
        left.set_xlabel("round")
        left.locator_params(axis="x", integer=True)
        left.set_ylabel("test accuracy (%)")
        right.set_xlabel("MB between server and clients, both directions")
        for ax in (left, right):
            ax.set_xlim(left=0)
            tidy(ax)
        left.legend(frameon=False, fontsize=9)
    save(fig, title, path)


def convergence_tables(results: Sequence[Result]) -> list[Sheet]:
    """The cost of each method, measured and published, and the layers of FedMA's network beside the published ones."""
    sheets = federated_tables(results)
    for name, runs in panels_of(results).items():
        sheets.append(_published(name, runs))
        sheets += [_widths(name, run) for run in runs if "widths" in run.summary]
    return sheets


def _published(name: str, runs: Sequence[Result]) -> Sheet:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        epochs = _epochs(run)
        best = {short(run): max(run.curve.accuracy)} if run.curve.accuracy else {}
        for line in lines_of(run):
            known = PUBLISHED.get(name, {}).get(line.name, (None, None, None))
            if line.name in ("local models, mean", "one-shot average"):
                continue
            reached = best.get(line.name, line.accuracy)
            rows.append(
                (
                    line.name,
                    percent(line.accuracy, 2),
                    percent(reached, 2),
                    None if known[0] is None else f"{known[0]} %",
                    epochs,
                    known[1],
                    None if known[2] is None else f"{known[2]}x",
                )
            )
    header = ("method", "at the end", "best", "published", "E", "published best E", "published growth")
    return Sheet(f"{name}: tables 5.1 and 5.2", header, tuple(rows))


def _widths(name: str, run: Result) -> Sheet:
    published = WIDTHS.get(name, ())
    rows: list[tuple[Cell, ...]] = []
    for i, (layer, client, matched) in enumerate(run.summary["widths"]):
        theirs, grown = published[i] if i < len(published) else (None, None)
        rows.append((layer, client, matched, f"{matched / client:.2f}x", theirs, grown))
    header = ("layer", "client", "matched", "growth", "published client", "published matched")
    return Sheet(f"{name}: neurons of each layer, tables 5.6 and 5.7", header, tuple(rows))


def _epochs(run: Result) -> int | None:
    job = run.job
    local: Any = job.phases[0].work if isinstance(job, Run) else job
    return getattr(local, "local", local).epochs

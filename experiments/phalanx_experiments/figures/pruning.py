# SPDX-License-Identifier: Apache-2.0
"""Small networks beside each other: accuracy by parameters, multiply-accumulates, rounds and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phalanx.lowrank.pruning.lottery import Lottery
from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import panels_of, short, styles_of

PUFFERFISH = "pufferfish"  # a run whose label begins so is what the others' costs are compared with


@dataclass(frozen=True)
class Stop:
    """A network at the end of its training, and the cost of the training.

    Args:
        parameters: that are not zero.
        rounds, seconds: since the run began.
    """

    label: str
    parameters: int
    accuracy: float
    rounds: int
    seconds: float


def stops(run: Result) -> list[Stop]:
    """The last test of a run; for a lottery, the last test of each cycle."""
    sizes = [line["parameters"] for line in run.metrics() if "parameters" in line]
    job = run.job
    cycles = isinstance(job, Run) and any(isinstance(phase.surgery, Lottery) for phase in job.phases)
    last = [i for i in range(len(sizes)) if i + 1 == len(sizes) or (cycles and sizes[i] != sizes[i + 1])]
    return [
        Stop(
            f"{short(run)}, {number} pruned" if cycles and number else short(run),
            sizes[i],
            run.curve.accuracy[i],
            run.curve.rounds[i],
            run.curve.seconds[i],
        )
        for number, i in enumerate(last)
    ]


def plot_lottery(results: Sequence[Result], title: str, path: Path) -> None:
    """Parameters by seconds, accuracy by parameters (figure 4.6), and accuracy by rounds."""
    styles = styles_of([short(run) for run in results])
    fig = figure(15, 5.0)
    axes: Any = fig.subplots(1, 3)
    for run in results:
        style, ends = styles[short(run)], stops(run)
        _points(axes[0], [s.seconds for s in ends], [s.parameters / 1e6 for s in ends], style, short(run))
        _points(axes[1], [s.parameters / 1e6 for s in ends], [100 * s.accuracy for s in ends], style, short(run))
        axes[2].plot(run.curve.rounds, [100 * a for a in run.curve.accuracy], **style)
    words = (
        ("seconds", "million parameters"),
        ("million parameters", "test accuracy (%)"),
        ("round", "test accuracy (%)"),
    )
    _finish(fig, axes, words, title, path)


def plot_slim(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each model: accuracy by rounds, by parameters and by multiply-accumulates."""
    panels = panels_of(results)
    styles = styles_of([short(run) for run in results])
    fig = figure(15, 4.6 * len(panels) + 0.4)
    axes: Any = fig.subplots(len(panels), 3, squeeze=False)
    for (name, runs), line in zip(panels.items(), axes, strict=True):
        for run in runs:
            style, ends = styles[short(run)], stops(run)
            line[0].plot(run.curve.rounds, [100 * a for a in run.curve.accuracy], **style)
            heights = [100 * s.accuracy for s in ends]
            _points(line[1], [s.parameters / 1e6 for s in ends], heights, style, short(run))
            if "macs" in run.summary:
                _points(line[2], [run.summary["macs"] / 1e6] * len(heights), heights, style, short(run))
        line[0].set_title(name, loc="left", fontsize=11)
    words = tuple((x, "test accuracy (%)") for x in ("round", "million parameters", "million MACs of one example"))
    _finish(fig, axes.flatten(), words * len(panels), title, path)


def lottery_tables(results: Sequence[Result]) -> list[Sheet]:
    """Every network that was trained to its end: its size, its accuracy, and the cost beside PUFFERFISH's."""
    ends = [stop for run in results for stop in stops(run)]
    beside = next((stop for stop in ends if stop.label.startswith(PUFFERFISH)), None)
    rows: list[tuple[Cell, ...]] = [
        (
            stop.label,
            stop.parameters,
            f"{100 * stop.parameters / ends[0].parameters:.1f} %",
            f"{100 * stop.accuracy:.1f} %",
            stop.rounds,
            stop.seconds,
            None if beside is None else stop.rounds / beside.rounds,
            None if beside is None else stop.seconds / beside.seconds,
        )
        for stop in ends
    ]
    costs = ("rounds", "seconds", "times its rounds", "times its seconds")
    return [Sheet(f"cost beside {PUFFERFISH}", ("network", "parameters", "left", "accuracy", *costs), tuple(rows))]


def slim_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each model: accuracy, parameters, multiply-accumulates, and when the network became small."""
    return [_slim_table(name, runs) for name, runs in panels_of(results).items()]


def _slim_table(name: str, runs: Sequence[Result]) -> Sheet:
    rows: list[tuple[Cell, ...]] = []
    first = next((run.summary["macs"] for run in runs if "macs" in run.summary), None)
    whole = [stop.parameters for run in runs for stop in stops(run)][:1]
    for run in runs:
        macs = run.summary.get("macs")
        operated = [line["step"] for line in run.metrics() if "operated" in line]
        rows += [
            (
                stop.label,
                f"{100 * stop.accuracy:.1f} %",
                stop.parameters,
                f"{100 * stop.parameters / whole[0]:.1f} %",
                macs,
                None if macs is None or not first else f"{100 * macs / first:.1f} %",
                operated[0] if operated else None,
                stop.seconds,
            )
            for stop in stops(run)
        ]
    header = ("network", "accuracy", "parameters", "left", "MACs", "MACs left", "small since round", "seconds")
    return Sheet(name or "small networks", header, tuple(rows))


def _points(ax: Any, x: list[float], y: list[float], style: dict[str, Any], label: str) -> None:
    ax.plot(x, y, marker="o", label=label, **style)


def _finish(fig: Any, axes: Any, words: Sequence[tuple[str, str]], title: str, path: Path) -> None:
    known: dict[str, Any] = {}
    for ax, (x, y) in zip(axes, words, strict=True):
        ax.set_xlabel(x)
        ax.set_ylabel(y)
        tidy(ax)
        known |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(list(known.values()), list(known), loc="outside right center", frameon=False)
    save(fig, title, path)

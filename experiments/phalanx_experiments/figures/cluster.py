# SPDX-License-Identifier: Apache-2.0
"""Accuracy against the seconds that a cluster would take for the same rounds.

A simulation computes each unit of work once, in turn; in a cluster the workers compute at the same time, each all of
its units. So a round takes, from what was measured here:

    work / units of the round * units of a worker + encoding / workers + decoding and rule + update

Communication is left out: what a worker sends is in the table, and how long it takes depends on the network. What the
attack computes does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import COLOURS, DASHES, GREY, REFERENCE
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import panels_of, plot_against, short

SHARES = (0.8, 0.9, 0.95)  # of the best accuracy of a panel: its targets


def plot_cluster(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each "panel: " among the labels: accuracy by rounds, and by a cluster's seconds."""
    unit = "seconds of a cluster, without communication"
    plot_against(shared(results), _styles(results), cluster_seconds, unit, title, path)


def cluster_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each panel: accuracies, the parts of a round, and seconds to parts of the accuracy of its best run."""
    return [_table(name, runs) for name, runs in shared(results).items()]


def _table(name: str, runs: Sequence[Result]) -> Sheet:
    best = max((a for run in runs for a in run.curve.accuracy), default=0.0)
    targets = [share * best for share in SHARES]
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        work, encode, decode = (_milliseconds(part) for part in _parts(run))
        each = run.summary.get("bytes_per_worker_round")
        rows.append(
            (
                short(run),
                None if run.accuracy is None else f"{100 * run.accuracy:.1f} %",
                f"{100 * max(run.curve.accuracy):.1f} %" if run.curve.accuracy else None,
                run.summary.get("lost_groups"),
                work,
                encode,
                decode,
                None if each is None else each / 1e3,
                *(seconds_to(run, target) for target in targets),
            )
        )
    goals = tuple(f"s to {100 * target:.1f} %" for target in targets)
    header = (
        "method",
        "at the end",
        "best",
        "groups lost",
        "work ms",
        "encode ms",
        "decode and rule ms",
        "kB a worker",
    )
    return Sheet(name or "a round of a cluster", header + goals, tuple(rows))


def shared(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The panels, each with the reference runs that belong to no panel or to a panel named after their model."""
    panels = panels_of(results)
    alone = [name for name, runs in panels.items() if not name or all(REFERENCE in short(run) for run in runs)]
    apart = [run for name in alone for run in panels.pop(name)] if len(alone) < len(panels) else []
    return (
        {name: [*(r for r in apart if _fits(r, name)), *runs] for name, runs in panels.items()}
        if panels
        else {"": list(apart)}
    )


def _fits(reference: Result, panel: str) -> bool:
    """Whether a reference run trains the model of a panel, where panels have several models."""
    head, colon, _ = reference.label.partition(": ")
    return not colon or head in panel


def cluster_seconds(run: Result) -> list[float]:
    """Seconds since the start at each test, counted in median rounds, as the first rounds compile kernels."""
    each = sum(part or 0.0 for part in _parts(run))
    return [rounds * each for rounds in run.curve.rounds]


def seconds_to(run: Result, target: float) -> float | None:
    """A cluster's seconds to the first test with at least this accuracy; None if there was none."""
    for spent, accuracy in zip(cluster_seconds(run), run.curve.accuracy, strict=True):
        if accuracy >= target:
            return spent
    return None


def _parts(run: Result) -> tuple[float | None, ...]:
    """Median seconds of work, encoding, and what the server does."""
    from statistics import median

    return tuple(median(part) if part else None for part in _each(run))


def _each(run: Result) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each round: work, encoding, and what the server does."""
    job = run.job
    assert isinstance(job, Run)
    allocation = job.phases[0].scheme.assign(job.workers)
    units = job.workers if allocation is None else allocation.num_units
    most = 1 if allocation is None else max(len(of_worker) for of_worker in allocation.units)
    lines = run.metrics()
    work = [line["work_s"] / units * most for line in lines]
    encode = [line["encode_s"] / job.workers for line in lines]
    decode = [line["scheme_s"] - line["encode_s"] + line["finish_s"] for line in lines]
    return work, encode, decode


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _styles(results: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """Colours and dashes of the lines: references grey, methods with a code solid, the others dashed."""
    styles: dict[str, dict[str, Any]] = {}
    colours = iter(COLOURS * (len(results) // len(COLOURS) + 1))
    for name in dict.fromkeys(map(short, results)):
        if REFERENCE in name:
            styles[name] = {"color": GREY, "linestyle": DASHES[1], "linewidth": 2.4}
        else:
            coded = any(word in name for word in ("DETOX", "repetition", "cyclic"))
            styles[name] = {"color": next(colours), "linestyle": DASHES[0 if coded else 2], "linewidth": 1.6}
    return styles

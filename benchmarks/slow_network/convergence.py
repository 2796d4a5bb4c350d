# SPDX-License-Identifier: Apache-2.0
"""Seconds to a fixed accuracy over the network, by scheme and seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from phalanx.tools.report import tables
from phalanx.tools.report.collect import Curve, Result
from phalanx.tools.runner.study import Study
from phalanx.training.phase import Run, amend
from slow_network import jobs
from slow_network.hosts import Hosts
from slow_network.link import throughput

if TYPE_CHECKING:
    from rich.table import Table


def run_all(
    study: Study,
    workers: int,
    rate: str,
    delay_ms: float,
    seeds: Sequence[int],
    out: Path,
    limit_s: float,
    say: Callable[[str], None],
) -> tuple[dict[int, list[Result]], float | None]:
    """Runs every run with every seed to its end; what is finished in `out` is kept, what was begun resumes.

    Args:
        out: a folder for each seed is made in it.
        limit_s: for all runs of one seed together.
    Returns:
        The results by seed, and the bits a second that a link carried; None when nothing was left to run.
    """
    studies = {seed: seeded(study, workers, seed) for seed in seeds}
    folders = {seed: out / f"seed-{seed}" for seed in seeds}
    todo = {seed: unfinished(studies[seed], folders[seed]) for seed in seeds}
    results, achieved = {}, None
    with Hosts(workers, rate, delay_ms) as hosts:
        if any(todo.values()):
            achieved = throughput(hosts)["bits_per_s"]
        for seed in seeds:
            say(f"seed {seed}: {', '.join(todo[seed]) if todo[seed] else 'finished before'}")
            results[seed] = jobs.conduct(hosts, studies[seed], folders[seed], limit_s)
    return results, achieved


def seeded(study: Study, workers: int, seed: int) -> Study:
    """The study with this number of workers and this seed."""
    return jobs.changed(
        study, {label: amend(amend(run, "workers", workers), "seed", seed) for label, run in study.runs.items()}
    )


def unfinished(study: Study, path: Path) -> list[str]:
    """Labels of the runs that have no summary in the folder yet."""
    finished = jobs.prepare(study, path).finished(study)
    return [label for label in study.runs if label not in finished]


def seconds_to(curve: Curve, target: float) -> float | None:
    """Seconds of work, scheme and finish until the first test at or above the target; None if there is none."""
    return next((s for s, a in zip(curve.seconds, curve.accuracy, strict=True) if a >= target), None)


def uncompressed(runs: dict[str, Run]) -> str | None:
    """The label of the run that all-reduces uncompressed gradients."""
    return next((label for label, run in runs.items() if repr(run.phases[0].scheme) in jobs.UNCOMPRESSED), None)


def report(results: dict[int, list[Result]], target: float, baseline: str | None) -> dict[str, Any]:
    """Per scheme: seconds to the target, speed-up over the baseline of the same seed, final accuracy, bytes.

    Args:
        results: by seed, the same labels in each.
        target: accuracy in [0, 1].
        baseline: label; no speed-ups when None.
    """
    by_label: dict[str, dict[int, Result]] = {}
    for seed, runs in results.items():
        for result in runs:
            by_label.setdefault(result.label, {})[seed] = result
    reached = {label: {s: seconds_to(r.curve, target) for s, r in runs.items()} for label, runs in by_label.items()}
    base = reached.get(baseline, {}) if baseline is not None else {}
    schemes = {}
    for label, runs in by_label.items():
        lines = {}
        for seed, result in runs.items():
            took, plain = reached[label][seed], base.get(seed)
            lines[seed] = {
                "seconds_to_target": took,
                "speed_up": plain / took if took and plain else None,
                "accuracy": result.summary["accuracy"],
                "bytes_per_worker_round": result.summary["bytes_per_worker_round"],
                "round_s": result.summary["round_s"],
                "seconds": result.curve.seconds,
                "curve": result.curve.accuracy,
            }
        measured = ("seconds_to_target", "speed_up", "accuracy", "bytes_per_worker_round", "round_s")
        means = {name: spread([line[name] for line in lines.values()]) for name in measured}
        schemes[label] = {"seeds": lines, **means}
    return {"target": target, "baseline": baseline, "schemes": schemes}


def spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation, least and largest, and of how many; None if any is missing: a mean of the runs that
    reached the target would flatter those that did not."""
    have = [v for v in values if v is not None]
    if len(have) < len(values) or not have:
        return None
    deviation = stdev(have) if len(have) > 1 else None
    return {"mean": mean(have), "stdev": deviation, "min": min(have), "max": max(have), "n": len(have)}


def table(summary: dict[str, Any]) -> Table:
    """A line for each scheme."""
    header = ("scheme", f"seconds to {100 * summary['target']:g} %", "speed-up", "accuracy", "bytes", "step")
    rows = []
    for label, scheme in summary["schemes"].items():
        lines = scheme["seeds"].values()
        took = sum(line["seconds_to_target"] is not None for line in lines)
        rows.append(
            [
                label,
                _words(scheme["seconds_to_target"], 1) or f"reached in {took} of {len(lines)}",
                _words(scheme["speed_up"], 2) or "-",
                _words(scheme["accuracy"], 1, 100),
                tables.size(scheme["bytes_per_worker_round"]["mean"]),
                tables.seconds(scheme["round_s"]["mean"]),
            ]
        )
    return tables.plain_table("mean and standard deviation over seeds", header, rows)


def _words(values: dict[str, Any] | None, digits: int, factor: float = 1.0) -> str:
    if values is None:
        return ""
    words = f"{factor * values['mean']:.{digits}f}"
    return words if values["stdev"] is None else f"{words} +- {factor * values['stdev']:.{digits}f}"

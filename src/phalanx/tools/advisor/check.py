# SPDX-License-Identifier: Apache-2.0
"""Predictions beside what runs really took."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from phalanx.core.parser import parse
from phalanx.data.dataset import Data
from phalanx.tools.advisor.advise import redundancy
from phalanx.tools.advisor.link import Link
from phalanx.tools.advisor.measure import share
from phalanx.tools.advisor.model import Step, predict
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.report.collect import collect
from phalanx.training.phase import Run
from phalanx.training.run_folder import RunFolder

WARM_ROUNDS = 3  # the first rounds compile kernels


@dataclass(frozen=True)
class Comparison:
    """One run against its prediction.

    Args:
        measured: medians over the rounds, of rank 0; its wire_s waits for the slowest process.
        sent_bytes: that a worker sent in a step.
    """

    label: str
    scheme: str
    workers: int
    predicted: Step
    measured: Step
    predicted_bytes: float
    sent_bytes: float

    @property
    def error(self) -> float:
        """Predicted over measured seconds of the step, less 1: above 0 where the prediction is too slow."""
        return self.predicted.seconds / self.measured.seconds - 1

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        return {
            "label": self.label,
            "scheme": self.scheme,
            "workers": self.workers,
            "predicted": {
                **asdict(self.predicted),
                "step_s": self.predicted.seconds,
                "sent_bytes": self.predicted_bytes,
            },
            "measured": {**asdict(self.measured), "step_s": self.measured.seconds, "sent_bytes": self.sent_bytes},
            "error": self.error,
        }


def check(probe: Probe, link: Link, paths: Sequence[Path]) -> list[Comparison]:
    """Each run in these folders of runs or studies against what the probe predicts for it.

    Args:
        link: that the runs used.
    Raises:
        ValueError: a run's scheme, model, data or share of the batch is not the probe's, it had several workers a
            process, or it has not begun.
    """
    return [_compare(probe, link, result.label, RunFolder(result.path)) for result in collect(paths)]


def _compare(probe: Probe, link: Link, label: str, folder: RunFolder) -> Comparison:
    run = parse(folder.config)
    lines = folder.metrics()
    lines = lines[min(WARM_ROUNDS, len(lines) // 2) :]
    if not lines:
        raise ValueError(f"{folder.path} has no rounds yet; check it when it has some")
    n = run.workers
    alike(probe.run, run, str(folder.path))
    processes = (folder.summary or {}).get("processes", n)
    if processes != n:
        raise ValueError(f"{folder.path} had {n} workers in {processes} processes; predictions are for one a process")
    scheme = repr(run.phases[0].scheme)
    cost = next((cost for cost in probe.costs if cost.scheme == scheme), None)
    if cost is None:
        raise ValueError(f"{folder.path} ran {scheme}, which the probe did not measure; probe with --scheme '{scheme}'")
    measured = measured_step(lines)
    predicted = predict(cost, probe.work_s * redundancy(cost, n), link, n)
    sent = sum(line["bytes_up"] for line in lines) / len(lines) / n
    return Comparison(
        label=label,
        scheme=scheme,
        workers=n,
        predicted=predicted,
        measured=measured,
        predicted_bytes=cost.sent_bytes,
        sent_bytes=sent,
    )


def measured_step(lines: Sequence[Mapping[str, Any]]) -> Step:
    """The medians over rounds by part, from their metrics."""
    parts = {
        key: median(line[key] for line in lines) for key in ("work_s", "encode_s", "wire_s", "decode_s", "finish_s")
    }
    rule_s = median(line["scheme_s"] - line["encode_s"] - line["wire_s"] - line["decode_s"] for line in lines)
    return Step(**parts, rule_s=rule_s)


def alike(probed: Run, run: Run, where: str) -> None:
    """Raises ValueError unless a run does the same work in a step as the probed one."""
    pairs: dict[str, tuple[Any, Any]] = {
        **{name: (getattr(probed, name), getattr(run, name)) for name in ("model", "threads", "precision", "augment")},
        "data": (_images(probed.data), _images(run.data)),
        "examples of one worker": (share(probed), share(run)),
    }
    for name, (have, other) in pairs.items():
        if have != other:
            raise ValueError(f"{where}: {name} is {other!r} there and {have!r} in what is probed; probe it by itself")


def _images(data: Data) -> tuple[Any, ...]:
    """What of a data set decides how long its images take: not how many there are."""
    fields = {f.name: getattr(data, f.name) for f in dataclasses.fields(data) if f.name not in ("train", "test")}  # type: ignore[arg-type]
    return (data.expression_name, *sorted(fields.items()))

# SPDX-License-Identifier: Apache-2.0
"""The runs in run folders and study folders, with their curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from phalanx.core.registry import entries
from phalanx.tools.report.score import ACCURACY, Score, is_tested, score_of, value_of
from phalanx.tools.runner.measurement import Job, parse_job
from phalanx.tools.runner.study import StudyFolder
from phalanx.training.run_folder import RunFolder, slug


@dataclass(frozen=True)
class Curve:
    """What a run cost and reached at the rounds where it was tested.

    Args:
        bytes_up: sent by all workers since the start.
        seconds: since the start; of work, scheme and finish.
        accuracy: in [0, 1]; of tasks that are no classification their score.
        bytes_down: sent to all workers since the start.
        clients: the lowest and the highest score among the clients, where they are tested on examples of their own.
    """

    rounds: list[int]
    bytes_up: list[float]
    seconds: list[float]
    accuracy: list[float]
    bytes_down: list[float] = field(default_factory=list)
    clients: list[tuple[float, float] | None] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A run or a measurement on the disk.

    Args:
        summary: empty while the run has not ended.
        measures: whether it is a measurement, which has no curve.
        score: what its numbers are.
    """

    label: str
    path: Path
    summary: dict[str, Any]
    curve: Curve
    measures: bool = False
    score: Score = ACCURACY

    @property
    def accuracy(self) -> float | None:
        """The accuracy, or the score of another task, at the end or at the last test so far."""
        reached = self.curve.accuracy[-1] if self.curve.accuracy else None
        return value_of(self.summary) if is_tested(self.summary) else reached

    @property
    def job(self) -> Job:
        """The run or the measurement itself."""
        return parse_job(RunFolder(self.path).config, str(self.path))

    @property
    def name(self) -> str:
        """The label in its own study."""
        return _label(self.path)

    def metrics(self) -> list[dict[str, Any]]:
        """What was logged of every round."""
        return RunFolder(self.path).metrics()


def collect(paths: Sequence[Path | str]) -> list[Result]:
    """The runs in these folders, in the order of the studies' labels; a run met twice counts once.

    Raises:
        ValueError: a folder holds neither a run nor a study.
    """
    by_path: dict[Path, Result] = {}
    for path in map(Path, paths):
        for label, folder in _runs_in(path):
            if folder.resolve() not in by_path:
                by_path[folder.resolve()] = _read(label, folder)
    results = list(by_path.values())
    labels = [r.label for r in results]
    if len(set(labels)) == len(labels):
        return results
    # equal labels are told apart by their studies
    return [replace(r, label=f"{r.path.resolve().parent.name} {r.label}") for r in results]


def _runs_in(path: Path) -> list[tuple[str, Path]]:
    if (path / "config.txt").exists():
        return [(_label(path), path)]
    if (path / "study.json").exists():
        folder = StudyFolder(path)
        have = [(label, folder.run_path(label)) for label in folder.study.jobs]
        return [(label, run) for label, run in have if (run / "config.txt").exists()]
    raise ValueError(f"{path} holds neither a run nor a study; give a folder that phalanx run has written")


def _label(path: Path) -> str:
    """A run's label in its study, or its folder's name."""
    study = path.resolve().parent / "study.json"
    labels = json.loads(study.read_text())["runs"] if study.exists() else {}
    return next((label for label in labels if slug(label) == path.resolve().name), path.resolve().name)


def _read(label: str, path: Path) -> Result:
    folder = RunFolder(path)
    lines = folder.metrics()
    sent = list(accumulate(float(line["bytes_up"]) for line in lines))
    received = list(accumulate(float(line.get("bytes_down", 0)) for line in lines))
    spent = list(accumulate(line["work_s"] + line["scheme_s"] + line["finish_s"] for line in lines))
    tested = [i for i, line in enumerate(lines) if is_tested(line)]
    score = score_of(lines[tested[-1]]) if tested else score_of(folder.summary or {})
    curve = Curve(
        rounds=[lines[i]["step"] + 1 for i in tested],
        bytes_up=[sent[i] for i in tested],
        seconds=[spent[i] for i in tested],
        accuracy=[value_of(lines[i]) for i in tested],  # type: ignore[misc]
        bytes_down=[received[i] for i in tested],
        clients=[_range(lines[i], score.name) for i in tested],
    )
    name = folder.config.partition("(")[0]
    measures = any(name == entry.name for entry in entries("measurement"))
    return Result(label, path, folder.summary or {}, curve, measures=measures, score=score)


def _range(line: dict[str, Any], name: str) -> tuple[float, float] | None:
    """The lowest and the highest score among the clients of a tested line."""
    key = "loss" if name == "test_loss" else name
    known = [numbers[key] for numbers in line.get("client_metrics", {}).values() if numbers.get(key) is not None]
    return (min(known), max(known)) if known else None

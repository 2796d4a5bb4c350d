# SPDX-License-Identifier: Apache-2.0
"""A recipe being run: one folder, in it one run after the other, resumable at any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from phalanx.core.folder_lock import folder_lock
from phalanx.core.registry import MissingModule, extensions, import_extensions
from phalanx.distributed.job import Processes
from phalanx.tools.runner.measurement import Job, Measurement, parse_job
from phalanx.training.phase import Run
from phalanx.training.run_folder import RunFolder, about, new_folder, slug, write_json
from phalanx.training.trainer import Listener, train

PATIENCE_S = 60.0  # for processes of a command that was killed: each ends its round first


@dataclass(frozen=True)
class Study:
    """Labelled runs and measurements, and where they come from.

    Args:
        recipe: its name, or "run" for a run or a measurement given as an expression.
        scale: None for an expression.
        settings: "path=value" changes to every job that has the path.
        jobs: what is run or measured, by label.
        notices: sentences for the user: which setting left which run alone.
    """

    recipe: str
    scale: str | None
    settings: tuple[str, ...]
    jobs: Mapping[str, Job]
    notices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def runs(self) -> dict[str, Run]:
        """Those of the jobs that train."""
        return {label: job for label, job in self.jobs.items() if isinstance(job, Run)}

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON; `from_json` is the inverse."""
        return {
            "recipe": self.recipe,
            "scale": self.scale,
            "settings": list(self.settings),
            "imports": extensions(),
            "seeds": {label: job.seed for label, job in self.jobs.items()},
            "runs": {label: repr(job) for label, job in self.jobs.items()},
        }

    @staticmethod
    def from_json(plain: dict[str, Any]) -> Study:
        """The study that `to_json` described; it keeps its runs even if the recipe has changed since.

        Raises:
            MissingModule: a module that the study imports cannot be imported here.
            ValueError: a run cannot be read.
        """
        import_extensions(plain.get("imports", ()))
        jobs = {label: parse_job(text, f"run {label!r}") for label, text in plain["runs"].items()}
        return Study(plain["recipe"], plain["scale"], tuple(plain["settings"]), jobs)


class StudyFolder:
    """The files of a study.

    ``study.json`` what is run, versions, machine, commit; ``lock``, held while somebody runs it; a run folder for each
    label; at the end ``summary.json``, a list of the runs' labels and summaries, ``plot.png``, and ``tables.json``
    where the recipe reports more.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @staticmethod
    def create(study: Study, path: Path | str | None, argv: Sequence[str] = ()) -> StudyFolder:
        """A new folder at `path`, or under runs/ when None.

        Raises:
            ValueError: there is something at `path` already.
        """
        chosen = Path(path) if path is not None else new_folder(slug(study.recipe))
        if chosen.exists() and not chosen.is_dir():
            raise ValueError(f"{chosen} is a file; give a new folder")
        if chosen.exists() and any(chosen.iterdir()):
            raise ValueError(f"{chosen} is not empty; go on with it by --resume {chosen}, or give a new folder")
        chosen.mkdir(parents=True, exist_ok=True)
        write_json(chosen / "study.json", {**study.to_json(), "argv": list(argv), **about()})
        return StudyFolder(chosen)

    @property
    def study(self) -> Study:
        """What is run in this folder.

        Raises:
            ValueError: the folder holds no study.
        """
        file = self.path / "study.json"
        if not file.exists():
            parent = self.path.resolve().parent
            inside = f"; it is a run of the study {parent}" if (parent / "study.json").exists() else ""
            raise ValueError(f"{self.path} holds no study: there is no study.json in it{inside}")
        try:
            return Study.from_json(json.loads(file.read_text()))
        except MissingModule:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({type(error).__name__}: {error}); begin in a new folder") from None

    def held(self, on_wait: Callable[[str], None] = lambda words: None) -> AbstractContextManager[int]:
        """Keeps other commands out of the folder; gives the open file, as `folder_lock` does."""
        return folder_lock(self.path, PATIENCE_S, on_wait)

    def run_path(self, label: str) -> Path:
        """The folder of a run."""
        return self.path / slug(label)

    def finished(self, study: Study) -> list[str]:
        """Labels of the jobs that have ended."""
        return [label for label in study.jobs if (self.run_path(label) / "summary.json").exists()]

    def summary(self, label: str) -> dict[str, Any] | None:
        """The summary of a job, once it has ended."""
        return RunFolder(self.run_path(label)).summary

    def results(self, study: Study) -> list[dict[str, Any]]:
        """Label, folder and summary of every job that has ended."""
        return [
            {"label": label, "folder": str(self.run_path(label)), **(self.summary(label) or {})}
            for label in self.finished(study)
        ]

    @staticmethod
    def title(study: Study) -> str:
        """Recipe, scale, workers and seed in one line."""
        workers = [f"{run.workers} workers" for run in study.runs.values()][:1]
        seeds = sorted({job.seed for job in study.jobs.values()})
        words = [study.recipe, *([study.scale] if study.scale else []), *workers]
        return ", ".join([*words, f"seed {' '.join(map(str, seeds))}"])


class Watcher(Protocol):
    """Gets the progress of a study; several jobs may run at the same time."""

    def begin(self, label: str, job: Job) -> None:
        """A run or a measurement starts or resumes."""
        ...

    def round(self, label: str, line: dict[str, Any]) -> None:
        """A round has ended, with these metrics."""
        ...

    def progress(self, label: str, words: str) -> None:
        """A measurement announces its next step."""
        ...

    def end(self, label: str, summary: dict[str, Any]) -> None:
        """A run or a measurement has ended, now or before the study was resumed."""
        ...


def run_study(
    study: Study,
    finished: Sequence[str],
    team: Processes,
    folder: StudyFolder | None,
    watcher: Watcher | None,
    tensorboard: bool = False,
) -> None:
    """Trains or measures all that has not ended; all processes call it alike, only rank 0 with a folder and a watcher.

    Args:
        finished: labels of the jobs to keep as they are.
    Raises:
        Interrupted: a stop was asked for; what has been done lies in the folder.
    """
    for label, job in study.jobs.items():
        target = None
        if folder is not None:
            target = RunFolder(folder.run_path(label), tensorboard and label not in finished)
        if label not in finished:
            if watcher is not None:
                watcher.begin(label, job)
            run_job(
                job,
                team,
                target,
                None if watcher is None else partial(watcher.round, label),
                None if watcher is None else partial(watcher.progress, label),
            )
        if watcher is not None and target is not None:
            watcher.end(label, target.summary or {})


def run_job(
    job: Job,
    team: Processes,
    target: RunFolder | None,
    listener: Listener | None,
    on_progress: Callable[[str], None] | None,
) -> None:
    """Trains or measures one job, from where its folder has it.

    Args:
        listener: called with each round's metrics.
        on_progress: called with a few words on what a measurement does next.
    """
    if isinstance(job, Run):
        world = team.world(job.workers)
        try:
            train(job, world, target, listener)
        finally:
            world.close()
    else:
        team.broadcast_from_rank0(partial(_measure, job, target, on_progress or (lambda words: None)))


def _measure(job: Measurement, target: RunFolder | None, on_progress: Callable[[str], None]) -> dict[str, Any]:
    began = time.perf_counter()
    if target is not None:
        target.begin(repr(job))
    measured = job.measure(on_progress)
    summary = {"measured": measured, "seconds": time.perf_counter() - began, "seed": job.seed}
    if target is not None:
        target.finish(summary)
    return summary

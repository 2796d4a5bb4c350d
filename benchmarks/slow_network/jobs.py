# SPDX-License-Identifier: Apache-2.0
"""Studies of Phalanx run by `torchrun` across the hosts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phalanx.core.parser import parse
from phalanx.distributed.server.identity import make_keys
from phalanx.tools.report.collect import Result, collect
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study, StudyFolder
from phalanx.training.phase import Run, amend
from phalanx.training.run_folder import about, write_json
from slow_network.hosts import Hosts, JobFailed

UNCOMPRESSED = ("chain(reduce(dense()))", "reduce(dense())")  # schemes that all-reduce the rows as they are


def ask(recipe: str, scale: str | None, only: Sequence[str], settings: Sequence[str]) -> Study:
    """The study of a recipe, an expression, or a file that holds one."""
    return build_study(recipe, scale, settings, only)


def with_schemes(study: Study, schemes: Sequence[str]) -> Study:
    """The study's first run under each of these schemes, labelled with its expression; the study itself if none."""
    if not schemes:
        return study
    first = next(iter(study.runs.values()))
    return changed(study, {text: amend(first, "scheme", parse(text)) for text in schemes})


def changed(study: Study, runs: dict[str, Run]) -> Study:
    """A copy of the study with other runs, checked.

    Raises:
        ValueError: a scheme does not fit the number of workers.
    """
    for label, run in runs.items():
        try:
            run.check()
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    return Study(study.recipe, study.scale, study.settings, runs)


def prepare(study: Study, path: Path) -> StudyFolder:
    """The study's folder; finished runs in it are kept, so that a second call continues the first.

    Raises:
        ValueError: the folder holds another run of the same label.
    """
    folder = StudyFolder(path)
    if (path / "study.json").exists():
        have = folder.study.runs
        other = [label for label in study.runs if label in have and have[label] != study.runs[label]]
        if other:
            raise ValueError(f"{path} holds another {other[0]!r}; give a new folder, or delete that one")
        study = changed(study, {**have, **study.runs})
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "study.json", {**study.to_json(), **about()})
    return folder


def conduct(hosts: Hosts, study: Study, path: Path, limit_s: float, *options: str) -> list[Result]:
    """Trains the unfinished runs, one worker on every host, and reads their results.

    Args:
        options: of `phalanx run`, such as "--server", which makes the first host the server.
    """
    folder = prepare(study, path)
    unfinished = set(folder.study.runs) - set(folder.finished(folder.study))
    if unfinished:
        argv = ["-m", "phalanx", "run", "--resume", str(path), *options]
        if "--server" in options:
            # the hosts share this machine's files
            if not (path / "keys").exists():
                make_keys(path / "keys", hosts.n - 1)
            argv += ["--keys", str(path / "keys")]
        try:
            hosts.torchrun(*argv, logs=path / "logs", limit_s=limit_s)
        except JobFailed:
            # a process may also crash on its way out, when all is measured and written
            if set(folder.study.runs) - set(folder.finished(folder.study)):
                raise
    results = {result.path.name: result for result in collect([path])}
    return [results[folder.run_path(label).name] for label in study.runs]

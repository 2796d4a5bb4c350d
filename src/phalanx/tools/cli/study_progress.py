# SPDX-License-Identifier: Apache-2.0
"""Runs a study from the terminal: shows its progress, and says how to go on after a stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import typer

from phalanx.tools.cli.common import STOPPED

if TYPE_CHECKING:
    from phalanx.distributed.job import Processes
    from phalanx.tools.runner.study import Study, StudyFolder


def run_with_progress(
    study: Study,
    folder: StudyFolder | None,
    finished: Sequence[str],
    resume_command: Callable[[StudyFolder], str],
    processes: Processes,
    jobs: int = 1,
    tensorboard: bool = False,
) -> None:
    """Runs those jobs of a study that have not ended; all processes call it alike, only rank 0 with a folder.

    Args:
        resume_command: returns the command that goes on with the study in a folder.
        jobs: number of jobs at the same time; more than one run in processes of their own.
    """
    from phalanx.tools.report.progress import Progress
    from phalanx.tools.runner.process_pool import ProcessPool
    from phalanx.tools.runner.study import run_study
    from phalanx.training.interrupt import Interrupted

    try:
        with (
            folder.held(partial(typer.echo, err=True)) if folder is not None else nullcontext(-1) as lock,
            Progress(len(study.jobs)) if folder is not None else nullcontext() as watcher,
        ):
            if folder is not None and jobs > 1:
                ProcessPool(study, folder, watcher, jobs, lock, tensorboard).map(finished)
            else:
                run_study(study, finished, processes, folder, watcher, tensorboard)
    except (Interrupted, KeyboardInterrupt) as stop:
        if folder is not None:
            typer.echo(f"{stop or 'stopped'}; go on with\n  {resume_command(folder)}", err=True)
        raise typer.Exit(STOPPED) from None
    except Exception:
        if folder is not None:
            command = resume_command(folder)
            typer.echo(f"the study stopped early; when the cause is removed, go on with\n  {command}", err=True)
        raise

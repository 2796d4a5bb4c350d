# SPDX-License-Identifier: Apache-2.0
"""A study under way on the terminal: progress, a stop, and how to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import typer

from phalanx.distributed.job import Processes
from phalanx.tools.cli.common import STOPPED
from phalanx.tools.runner.process_pool import side_by_side
from phalanx.tools.runner.study import Study, StudyFolder, conduct
from phalanx.training.interrupt import Interrupted


def conducted(
    study: Study,
    folder: StudyFolder | None,
    finished: Sequence[str],
    again: Callable[[StudyFolder], str],
    processes: Processes,
    jobs: int = 1,
    tensorboard: bool = False,
) -> None:
    """Does what has not ended of a study; all processes call it alike, only rank 0 with a folder.

    Args:
        again: the command that goes on.
        jobs: at a time, in processes of their own if more than one.
    """
    from phalanx.tools.report.progress import Progress

    try:
        with (
            folder.held(partial(typer.echo, err=True)) if folder is not None else nullcontext(-1) as lock,
            Progress(len(study.jobs)) if folder is not None else nullcontext() as watcher,
        ):
            if folder is not None and jobs > 1:
                side_by_side(study, finished, folder, watcher, jobs, lock, tensorboard)
            else:
                conduct(study, finished, processes, folder, watcher, tensorboard)
    except (Interrupted, KeyboardInterrupt) as stop:
        if folder is not None:
            typer.echo(f"{stop or 'stopped'}; go on with\n  {again(folder)}", err=True)
        raise typer.Exit(STOPPED) from None
    except Exception:
        if folder is not None:
            typer.echo(f"the study stopped early; when the cause is gone, go on with\n  {again(folder)}", err=True)
        raise

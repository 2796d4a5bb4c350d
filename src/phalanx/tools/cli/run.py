# SPDX-License-Identifier: Apache-2.0
"""phalanx run: all runs of a recipe, and a table of their results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.core.expression import require
from phalanx.tools.cli.common import (
    Imports,
    Jobs,
    Json,
    Only,
    Recipe,
    Scale,
    Seed,
    Settings,
    check_jobs,
    print_json,
    user_command,
)
from phalanx.tools.cli.study_progress import run_with_progress

_NODES = ("GROUP_WORLD_SIZE", 1)  # torchrun's name for the number of hosts

if TYPE_CHECKING:
    from phalanx.distributed.job import Processes
    from phalanx.tools.runner.study import Study, StudyFolder


@user_command
def run(
    recipe: Recipe = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Seed = None,
    imports: Imports = None,
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder for the results; runs/TIME-RECIPE if left out.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the study in this folder; needs no RECIPE.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")] = False,
    server: Annotated[
        bool, typer.Option("--server", help="One process is a server, the others are workers that may fail.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --server: worker processes to start on this machine, without torchrun."),
    ] = None,
    deadline: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            show_default=False,
            help="With --server: the shortest time it waits for a worker; 2 if left out.",
        ),
    ] = 2.0,
    keys: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="With --server beyond one machine: keys that phalanx keys made."),
    ] = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Runs a recipe, and prints a table of the results.

    The runs of the recipe follow one after the other. Their folder then holds a table, a plot, and all that is needed
    to go on after a stop. phalanx list recipes names the recipes; begin with quickstart.

    \b
    Examples:
      phalanx run quickstart
      phalanx run quickstart --scale smoke --set optimizer.lr=0.05 --seed 1
      phalanx run quickstart --only krum --only median --set "byzantine=random(3)"
      phalanx run robust-mnist --jobs 8
      phalanx run setting.txt --import my_module
      phalanx run --resume runs/2026-01-31-120000-quickstart
      torchrun --nproc-per-node 4 -m phalanx run robust-mnist
      phalanx run quickstart --server --processes 9 --set workers=9
    """
    from phalanx.core.registry import import_extensions
    from phalanx.tools.runner.study import Study, StudyFolder
    from phalanx.training.run_folder import event_writer

    check_jobs(jobs)
    import_extensions(imports or [])
    if tensorboard:
        event_writer()
    require(keys is None or server, "--keys belong to a server's job; add --server, or leave them out")
    if processes is not None:
        require(server, "--processes belong to a server's job; add --server, or leave them out")
        raise typer.Exit(_run_locally(processes, keys))
    with _processes(server, deadline, keys) as job:
        if job is None:
            return
        opened = job.broadcast_from_rank0(lambda: _open(recipe, scale, settings or [], only or [], seed, out, resume))
        study = Study.from_json(opened["study"])
        folder = StudyFolder(opened["folder"]) if job.rank == 0 else None
        resume_command = partial(_resume_command, job, jobs)
        run_with_progress(study, folder, opened["finished"], resume_command, job, jobs, tensorboard)
        if folder is not None:
            _report(study, folder, as_json)
            _fail_if_lost(folder.results(study))


def _run_locally(processes: int, keys: Path | None) -> int:
    """Runs this command in a server's process and in others; returns the server's exit code."""
    from phalanx.distributed.local_server_job import run_local_job

    require(keys is None, "--keys are for several machines; leave --keys or --processes out")
    argv = list(sys.argv[1:])
    place = next(i for i, word in enumerate(argv) if word.partition("=")[0] == "--processes")
    del argv[place : place + (1 if "=" in argv[place] else 2)]
    return run_local_job(argv, processes)


@contextmanager
def _processes(server: bool, deadline: float, keys: Path | None) -> Iterator[Processes | None]:
    """The processes of the job; None in a process that only guards a worker until the job is over."""
    from phalanx.distributed.job import Processes, join_processes

    if not server:
        with join_processes() as processes:
            yield processes
        return
    from phalanx.distributed.launcher import Launcher
    from phalanx.distributed.server.membership import Timeouts
    from phalanx.training.worker_loop import worker_loop

    jobs, timeouts = Launcher(worker_loop, keys), Timeouts(least_s=deadline)
    if jobs.rank:
        jobs.guard()
        yield None
        return
    try:
        yield Processes(server=lambda workers: jobs.open(workers, timeouts))
    finally:
        jobs.end()


def _open(
    recipe: str | None,
    scale: str | None,
    settings: list[str],
    only: list[str],
    seed: int | None,
    out: Path | None,
    resume: Path | None,
) -> dict[str, Any]:
    """The study as plain values, its folder, and the labels of the jobs that have ended."""
    from phalanx.tools.runner.request import build_study
    from phalanx.tools.runner.study import StudyFolder

    if resume is not None:
        folder = StudyFolder(resume)
        study = folder.study
        if settings or only or seed is not None or out is not None or scale not in (None, study.scale):
            raise ValueError(f"{resume} goes on as it began; leave out --set, --only, --seed, --scale and --out")
        if recipe not in (None, study.recipe):
            raise ValueError(f"{resume} holds {study.recipe}, not {recipe}; leave the recipe out")
    elif recipe is None:
        raise ValueError("run needs a recipe, such as quickstart; phalanx list recipes names them all")
    else:
        study = build_study(recipe, scale, settings, only, seed)
        folder = StudyFolder.create(study, out, sys.argv)
        for notice in study.notices:
            typer.echo(notice, err=True)
    return {"study": study.to_json(), "folder": str(folder.path), "finished": folder.finished(study)}


def _resume_command(processes: Processes, jobs: int, folder: StudyFolder) -> str:
    """The command that resumes the study of a folder."""
    if processes.size == 1 and processes.server is None:
        return f"phalanx run --resume {shlex.quote(str(folder.path))}{f' --jobs {jobs}' if jobs > 1 else ''}"
    from phalanx.distributed.local_server_job import PROCESSES

    if PROCESSES in os.environ:
        started = os.environ[PROCESSES]
        return f"phalanx run --resume {shlex.quote(str(folder.path))} --server --processes {started}"
    local, nodes = (int(os.environ.get(name, n)) for name, n in (("LOCAL_WORLD_SIZE", processes.size), _NODES))
    hosts = ""
    if nodes > 1:
        port = os.environ.get("MASTER_PORT", "29500")
        hosts = f"--nnodes {nodes} --node-rank K --master-addr {os.environ['MASTER_ADDR']} --master-port {port} "
    serving = " --server" if processes.server is not None else ""
    command = (
        f"torchrun {hosts}--nproc-per-node {local} -m phalanx run --resume {shlex.quote(str(folder.path))}{serving}"
    )
    return f"{command}\n  on every host, with K from 0 to {nodes - 1}; host 0 has the folder" if hosts else command


def _fail_if_lost(results: list[dict[str, Any]]) -> None:
    """Ends the command with code 1 if a run learnt nothing, or was left by most of its workers; says so in red."""
    sentences = []
    for result in results:
        rounds, lost, gone = result.get("rounds"), result.get("lost_rounds"), result.get("gone") or []
        if rounds and lost == rounds:
            sentences.append(
                f"{result['label']}: all {rounds} rounds were lost, so the model is as it was at the start"
            )
        elif gone and 2 * len(gone) > result["workers"]:
            sentences.append(f"{result['label']}: {len(gone)} of {result['workers']} workers were gone at the end")
    for sentence in sentences:
        typer.secho(sentence, fg=typer.colors.RED, err=True)
    if sentences:
        raise typer.Exit(1)


def _report(study: Study, folder: StudyFolder, as_json: bool) -> None:
    from phalanx.tools.report import tables
    from phalanx.tools.report.score import score_of, value_of
    from phalanx.tools.runner.finish import finish_study

    results, sheets = finish_study(study, folder, partial(typer.echo, err=True))
    plot = folder.path / "plot.png"
    has_plot = plot.exists()
    if as_json:
        paths = {"folder": str(folder.path), "plot": str(plot) if has_plot else None}
        document = {**study.to_json(), **paths, "results": results}
        print_json({**document, "tables": [sheet.to_json() for sheet in sheets]})
        return
    console = tables.console()
    trained = [r for r in results if r["label"] in study.runs]
    if trained:
        console.print(tables.results_table(((r["label"], value_of(r), r) for r in trained), map(score_of, trained)))
    for sheet in sheets:
        console.print(tables.plain_table(sheet.title, sheet.header, sheet.words()))
    if has_plot:
        typer.echo(f"plot    {plot}")
    typer.echo(f"folder  {folder.path}")

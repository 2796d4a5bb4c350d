# SPDX-License-Identifier: Apache-2.0
"""The command line: run, list, show, compare, probe, advise, doctor."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

import phalanx
from phalanx.commands.advise import advise
from phalanx.commands.common import STOPPED, Json, Only, Scale, Seed, Settings, print_json, said
from phalanx.commands.probe import probe
from phalanx.launch import Team, leave, team
from phalanx.registry import entries, kinds, suggest
from phalanx.report import tables
from phalanx.study import Study, StudyFolder, conduct, plan
from phalanx.train import Interrupted

app = typer.Typer(
    name="phalanx",
    help="Training on many machines when the network is slow or some of the machines cannot be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the command."""
    try:
        app()
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phalanx {phalanx.__version__}")
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    """Training on many machines when the network is slow or some of the machines cannot be trusted."""


@app.command()
@said
def run(
    recipe: Annotated[str | None, typer.Argument()] = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/TIME-RECIPE if left out.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this folder where it stopped.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")] = False,
    server: Annotated[
        bool, typer.Option("--server", help="Under torchrun: rank 0 serves, the others work and may fail.")
    ] = False,
    deadline: Annotated[
        float, typer.Option(metavar="SECONDS", help="A server waits at least so long for a worker.")
    ] = 2.0,
    as_json: Json = False,
) -> None:
    """Does every run or measurement of a recipe, and ends with a table, a plot and a folder.

    RECIPE is the name of a recipe, a run(...) expression, or a file that holds one; --resume needs none.

    \b
    Examples:
      phalanx run quickstart
      phalanx run quickstart --scale smoke --set finish.lr=0.05 --seed 1
      phalanx run quickstart --only krum --only median --set "byzantine=drawn(3)"
      phalanx run --resume runs/2026-01-31-120000-quickstart
      torchrun --nproc-per-node 4 -m phalanx run robust-mnist
      torchrun --nproc-per-node 10 -m phalanx run quickstart --server --set workers=9
    """
    with _processes(server, deadline) as processes:
        if processes is None:
            return
        ticket = processes.agree(lambda: _open(recipe, scale, settings or [], only or [], seed, out, resume))
        study = Study.from_json(ticket["study"])
        folder = StudyFolder(ticket["folder"]) if processes.rank == 0 else None
        _conduct(study, folder, ticket["finished"], processes, tensorboard)
        if folder is not None:
            _report(study, folder, as_json)


@contextmanager
def _processes(server: bool, deadline: float) -> Iterator[Team | None]:
    """The processes of the job; None in those that guard a worker until the job is over."""
    if not server:
        with team() as processes:
            yield processes
        return
    from phalanx.guard import Jobs
    from phalanx.worlds.seats import Patience

    jobs, patience = Jobs(), Patience(least_s=deadline)
    if jobs.rank:
        jobs.guard()
        yield None
        return
    try:
        yield Team(server=lambda workers: jobs.open(workers, patience))
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
    """The study, its folder and what is done of it."""
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
        study = plan(recipe, scale, settings, only, seed)
        folder = StudyFolder.create(study, out, sys.argv)
        for notice in study.notices:
            typer.echo(notice, err=True)
    return {"study": study.to_json(), "folder": str(folder.path), "finished": folder.finished(study)}


def _conduct(study: Study, folder: StudyFolder | None, finished: list[str], processes: Team, tensorboard: bool) -> None:
    from phalanx.report.progress import Progress

    try:
        with Progress(len(study.jobs)) if folder is not None else nullcontext() as watcher:
            conduct(study, finished, processes, folder, watcher, tensorboard)
    except (Interrupted, KeyboardInterrupt) as stop:
        if folder is not None:
            typer.echo(f"{stop or 'stopped'}; go on with\n  {_again(folder, processes)}", err=True)
        raise typer.Exit(STOPPED) from None
    except Exception:
        if folder is not None:
            typer.echo(
                f"the study stopped early; when the cause is gone, go on with\n  {_again(folder, processes)}", err=True
            )
        raise


def _again(folder: StudyFolder, processes: Team) -> str:
    """The command that resumes."""
    if processes.size == 1 and processes.server is None:
        return f"phalanx run --resume {shlex.quote(str(folder.path))}"
    local = os.environ.get("LOCAL_WORLD_SIZE", str(processes.size))
    serving = " --server" if processes.server is not None else ""
    return f"torchrun --nproc-per-node {local} -m phalanx run --resume {shlex.quote(str(folder.path))}{serving}"


def _report(study: Study, folder: StudyFolder, as_json: bool) -> None:
    results, sheets = folder.finish(study)
    plot = folder.path / "plot.png"
    drawn = plot.exists()
    if as_json:
        where = {"folder": str(folder.path), "plot": str(plot) if drawn else None}
        printed = {**study.to_json(), **where, "results": results}
        print_json({**printed, "tables": [sheet.to_json() for sheet in sheets]})
        return
    screen = tables.console()
    trained = [r for r in results if r["label"] in study.runs]
    if trained:
        screen.print(tables.results_table((r["label"], r["accuracy"], r) for r in trained))
    for sheet in sheets:
        screen.print(tables.plain_table(sheet.title, sheet.header, sheet.words()))
    typer.echo(f"{f'plot    {plot}' if drawn else ''}\nfolder  {folder.path}".lstrip())


@app.command("list")
@said
def list_(
    kind: Annotated[str | None, typer.Argument()] = None,
    as_json: Json = False,
) -> None:
    """Lists what recipes, schemes and runs are made of.

    KIND is recipes, aggregators, attacks, codecs, local, data, models or another kind; all of them if left out.

    \b
    Examples:
      phalanx list recipes
      phalanx list aggregators
      phalanx list attacks --json
    """
    from phalanx.recipes import recipes

    by_plural = {_plural(kind): kind for kind in kinds()}
    choices = ["recipes", *by_plural]
    if kind is not None and _plural(kind) not in choices and kind not in choices:
        raise ValueError(f"nothing is called {kind!r}; {suggest(kind, choices)}")
    wanted = choices if kind is None else [kind if kind in choices else _plural(kind)]
    listed: dict[str, list[dict[str, Any]]] = {}
    for name in wanted:
        if name == "recipes":
            listed[name] = [{"name": r.name, "scales": list(r.scales), "summary": r.summary} for r in recipes()]
        else:
            listed[name] = [
                {"name": e.name, "fields": tables.fields(e), "summary": e.summary} for e in entries(by_plural[name])
            ]
    if as_json:
        print_json(listed)
        return
    screen = tables.console()
    for name, rows in listed.items():
        header = list(rows[0]) if rows else []
        words = [[v if isinstance(v, str) else ", ".join(v) for v in row.values()] for row in rows]
        screen.print(tables.plain_table(name, header, words))


def _plural(kind: str) -> str:
    if kind in ("atoms", "data", "local", "work"):
        return kind
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("sh") else f"{kind}s"


@app.command()
@said
def show(
    recipe: str,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Prints the expression of every run or measurement of a recipe; each can be edited, kept in a file, and run.

    RECIPE is the name of a recipe, a run(...) expression, or a file that holds one.

    \b
    Examples:
      phalanx show quickstart
      phalanx show robust-mnist --scale paper --only "no attack: mean"
      phalanx show quickstart --only krum --set rounds=10 > krum.txt && phalanx run krum.txt
    """
    from phalanx.report.pretty import pretty

    study = plan(recipe, scale, settings or [], only or [], seed)
    for notice in study.notices:
        typer.echo(notice, err=True)
    if as_json:
        print_json(study.to_json())
        return
    for label, configured in study.jobs.items():
        typer.echo(f"# {label}\n{pretty(repr(configured))}\n")


@app.command()
@said
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...")],
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against rounds, bytes and seconds here.")] = None,
    as_json: Json = False,
) -> None:
    """Puts runs side by side, finished or not.

    RUN is the folder of a run, or that of a study with all its runs; measurements are left out.

    \b
    Examples:
      phalanx compare runs/2026-01-31-120000-quickstart
      phalanx compare runs/*-quickstart --plot all.png
      phalanx compare runs/a/krum runs/b/krum --json
    """
    from phalanx.report.collect import collect

    found = collect(runs)
    results = [r for r in found if not r.measures]
    if not results:
        only = "these folders hold measurements, which have no curves to compare"
        raise ValueError(only if found else "no run in these folders has begun yet")
    if plot is not None:
        from phalanx.report.plots import plot_comparison

        plot_comparison(results, "test accuracy", plot)
    if as_json:
        print_json([{"label": r.label, "folder": str(r.path), "curve": vars(r.curve), **r.summary} for r in results])
        return
    tables.console().print(tables.results_table((r.label, r.accuracy, r.summary) for r in results))
    if plot is not None:
        typer.echo(f"plot    {plot}")


@app.command()
@said
def doctor(as_json: Json = False) -> None:
    """Reports versions, threads, process groups, GPU, data and folders; ends with 1 if a run cannot work here.

    \b
    Examples:
      phalanx doctor
      phalanx doctor --json
    """
    from phalanx.doctor import examine

    findings = examine(Path("runs"))
    if as_json:
        print_json([vars(f) for f in findings])
    else:
        words = {True: "ok", False: "FAULT", None: "-"}
        tables.console().print(
            tables.plain_table("doctor", ["", "what", "found"], [(words[f.ok], f.name, f.words) for f in findings])
        )
    if any(f.ok is False for f in findings):
        raise typer.Exit(1)


app.command()(probe)
app.command()(advise)

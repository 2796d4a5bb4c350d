# SPDX-License-Identifier: Apache-2.0
"""phalanx reproduce: the tables and figures of the dissertation, published beside measured."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from phalanx.core.expression import require
from phalanx.distributed.job import Processes
from phalanx.tools.cli.common import Jobs, Json, Only, Scale, Settings, check_jobs, print_json, user_command
from phalanx.tools.cli.study_progress import run_with_progress
from phalanx.tools.report import tables
from phalanx.tools.runner.finish import finish_study
from phalanx.tools.runner.study import StudyFolder
from phalanx_experiments.reproduce import words
from phalanx_experiments.reproduce.catalogue import find, items
from phalanx_experiments.reproduce.evidence import Evidence, results_folder
from phalanx_experiments.reproduce.evidence_runner import EVIDENCE, run_missing
from phalanx_experiments.reproduce.item import STATES, Item
from phalanx_experiments.reproduce.planned import Planned, studies
from phalanx_experiments.reproduce.verdict import judged, outcome, state


@user_command
def reproduce(
    what: Annotated[
        str | None, typer.Argument(metavar="[TABLE_OR_FIGURE]", help="Such as table-5.1; --list names them all.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Every table and figure, with recipe, time and state.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Run all that has no committed result yet; --show prints what is left.")
    ] = False,
    seeds: Annotated[
        int,
        typer.Option(metavar="N", show_default=False, help="With --all: number of seeds of each run; 3 if left out."),
    ] = 3,
    report: Annotated[bool, typer.Option("--report", help="Build a site of all results, in --out.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print published beside measured, and run nothing.")] = False,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(metavar="SEED", help="Seed of every run; may be repeated; that of the recipe if left out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/TIME-TABLE if left out, site with --report.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this folder where it stopped.")] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder of committed results; if left out, those of the source tree or installed."),
    ] = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Runs a table or figure again: published beside measured.

    The tables and figures are those of the dissertation; --list says what is reproduced and what is not.

    \b
    Examples:
      phalanx reproduce --list
      phalanx reproduce figure-7.6 --scale laptop
      phalanx reproduce table-7.1 --seed 0 --seed 1 --seed 2 --jobs 2
      phalanx reproduce table-5.1 --show
      phalanx reproduce --resume runs/2026-01-31-120000-table-5-1
      phalanx reproduce --all --seeds 3 --show
      phalanx reproduce --all --seeds 3
      phalanx reproduce --report --out site
    """
    check_jobs(jobs)
    require("RANK" not in os.environ, "reproduce starts processes of its own; give --jobs, and leave torchrun out")
    _one_thing(what, listed, report, show, resume, everything)
    folder = results_folder(results)
    evidence = Evidence(folder)
    if folder is None:
        typer.echo(
            "no committed results were found; give --results PATH, such as experiments/results of a source tree",
            err=True,
        )
    if everything:
        fixed = settings or only or seed or jobs != 1
        require(
            not fixed,
            "--all runs the recipes as they are, one after the other; leave --set, --only, --seed, --jobs out",
        )
        run_missing(items(), evidence, seeds, scale or "laptop", out or EVIDENCE, show, as_json, sys.argv)
    elif report:
        _build(out or Path("site"), evidence, as_json)
    elif listed:
        _list([find(what)] if what else items(), evidence, as_json)
    elif show:
        assert what is not None
        _print(find(what), evidence, None, {}, as_json)
    else:
        _run(what, scale, settings or [], only or [], seed or [], out, resume, jobs, evidence, as_json)


def _one_thing(what: str | None, listed: bool, report: bool, show: bool, resume: Path | None, everything: bool) -> None:
    require(
        bool(what) or listed or report or everything or resume is not None,
        "reproduce needs a table or figure, such as table-5.1, or --list, --all, --report or --resume FOLDER",
    )
    if everything:
        others = what or listed or report or resume is not None
        require(
            not others, "--all runs every table and figure; leave the table's name, --list, --report and --resume out"
        )
        return
    wishes = [name for name, on in (("--list", listed), ("--report", report), ("--show", show)) if on]
    require(len(wishes) <= 1, f"{' and '.join(wishes)} are different things; give one of them")
    require(not show or bool(what), "--show needs a table or figure, such as table-5.1")


def _run(
    what: str | None,
    scale: str | None,
    settings: list[str],
    only: list[str],
    seeds: list[int],
    out: Path | None,
    resume: Path | None,
    jobs: int,
    evidence: Evidence,
    as_json: bool,
) -> None:
    if resume is not None:
        fixed = settings or only or seeds or out is not None or scale is not None
        require(not fixed, f"{resume} goes on as it began; leave out --set, --only, --seed, --scale and --out")
        planned = Planned.open(resume)
        require(what is None or find(what) == planned.item, f"{resume} holds {planned.item.key}, not {what}")
    else:
        assert what is not None
        item = find(what)
        planned = Planned.create(item, studies(item, scale, settings, only, seeds), out, sys.argv)
    for folder in planned.studies:
        study = folder.study
        run_with_progress(study, folder, folder.finished(study), partial(_again, planned, jobs), Processes(), jobs)
        finish_study(study, folder, partial(typer.echo, err=True))
    where = {
        "folder": str(planned.path),
        "plots": [str(p) for f in planned.studies if (p := f.path / "plot.png").exists()],
    }
    _print(planned.item, evidence, Evidence.of_studies(planned.studies), where, as_json)


def _again(planned: Planned, jobs: int, folder: StudyFolder) -> str:
    """The command that resumes the studies."""
    more = f" --jobs {jobs}" if jobs > 1 else ""
    return f"phalanx reproduce --resume {shlex.quote(str(planned.path))}{more}"


def _list(wanted: list[Item], evidence: Evidence, as_json: bool) -> None:
    if as_json:
        print_json([words.plain(item, evidence) for item in wanted])
        return
    sheet = words.listing(wanted, evidence)
    screen = tables.console()
    screen.print(tables.plain_table("tables and figures of the dissertation", sheet.header, sheet.words()))
    used = [state(item, evidence) for item in wanted]
    counts = [(name, str(used.count(name)), meaning) for name, meaning in STATES.items() if name in used]
    screen.print(tables.plain_table("states", ("state", "items", "meaning"), counts))
    typer.echo("n is the number of seeds behind the committed numbers; the time is that of one seed on two cores")


def _print(item: Item, evidence: Evidence, run: Evidence | None, where: dict[str, Any], as_json: bool) -> None:
    shown = evidence if run is None else run
    if as_json:
        of_run = None if run is None else words.plain(item, run)
        print_json({**words.plain(item, evidence), "run": of_run, **where})
        return
    screen = tables.console()
    whose = "committed results" if run is None else "this run"
    for title, sheet in (
        (f"{item.name}: {item.title} ({state(item, evidence)})", words.comparison(item, evidence, run)),
        (f"what was published, in {whose}", words.verdicts(item, shown)),
    ):
        if sheet.rows:
            screen.print(tables.plain_table(title, sheet.header, sheet.words()))
    for sentence in (outcome(judged(item, shown)), words.missing(item, shown), item.why):
        if sentence:
            screen.print(sentence, markup=False)
    for plot in where.get("plots", []):
        typer.echo(f"plot    {plot}")
    if where:
        typer.echo(f"folder  {where['folder']}")


def _build(out: Path, evidence: Evidence, as_json: bool) -> None:
    from phalanx_experiments.reproduce.site import build

    pages = build(out, items(), evidence)
    if as_json:
        print_json({"site": str(out), "pages": [str(path) for path in pages]})
    else:
        typer.echo(f"site    {out / 'index.html'}")

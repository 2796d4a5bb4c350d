# SPDX-License-Identifier: Apache-2.0
"""The command line: run, reproduce, audit, list, show, compare, probe, advise, factorize, doctor."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

import phalanx
from phalanx.core.registry import entries, kinds, suggest
from phalanx.distributed.job import leave
from phalanx.tools.cli.advise import advise
from phalanx.tools.cli.common import Json, Only, Recipe, Scale, Seed, Settings, print_json, said
from phalanx.tools.cli.factorize import factorize
from phalanx.tools.cli.probe import probe
from phalanx.tools.cli.redteam import redteam
from phalanx.tools.cli.run import run
from phalanx.tools.report import tables
from phalanx.tools.runner.request import requested

app = typer.Typer(
    name="phalanx",
    help="Training on many machines when the network is slow or some of the machines cannot be trusted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: paragraphs fill the line, and examples can be copied
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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Training on many machines when the network is slow or some of the machines cannot be trusted."""


app.command()(run)
app.command("redteam")(redteam)


@app.command("list")
@said
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="Such as recipes, aggregators, attacks, codecs, data, models; all if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lists what recipes, schemes and runs are made of.

    \b
    Examples:
      phalanx list recipes
      phalanx list aggregators
      phalanx list attacks --json
    """
    from phalanx.tools.runner.recipe import recipes

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
    if kind in ("atoms", "data", "edges", "local", "work"):
        return kind
    if kind.endswith("y"):
        return f"{kind[:-1]}ies"
    return f"{kind}es" if kind.endswith("sh") else f"{kind}s"


@app.command()
@said
def show(
    recipe: Recipe = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Prints the expressions behind a recipe.

    There is one for every run or measurement; each can be edited, kept in a file, and run.

    \b
    Examples:
      phalanx show quickstart
      phalanx show robust-mnist --scale paper --only "no attack: mean"
      phalanx show quickstart --only krum --set rounds=10 > krum.txt
      phalanx run krum.txt
    """
    from phalanx.tools.report.pretty import pretty

    if recipe is None:
        raise ValueError("show needs a recipe, such as quickstart; phalanx list recipes names them all")
    study = requested(recipe, scale, settings or [], only or [], seed)
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
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Folder of a run, or of a study with all its runs.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a PNG of accuracy against rounds, bytes and seconds here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Puts runs side by side, finished or not.

    Measurements have no curves and are left out.

    \b
    Examples:
      phalanx compare runs/2026-01-31-120000-quickstart
      phalanx compare runs/*-quickstart --plot all.png
      phalanx compare runs/a/krum runs/b/krum --json
    """
    from phalanx.tools.report.collect import collect

    if not runs:
        raise ValueError("compare needs folders of runs or of studies, such as runs/2026-01-31-120000-quickstart")
    found = collect(runs)
    results = [r for r in found if not r.measures]
    if not results:
        only = "these folders hold measurements, which have no curves to compare"
        raise ValueError(only if found else "no run in these folders has begun yet")
    if plot is not None:
        from phalanx.tools.report.plots import plot_comparison

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
    """Reports whether a run can work on this machine.

    It looks at versions, threads, process groups, GPU, data and folders, and ends with 1 if a run cannot work here.

    \b
    Examples:
      phalanx doctor
      phalanx doctor --json
    """
    from phalanx.tools.doctor import examine

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
app.command()(factorize)
for entry in entry_points(group="phalanx.commands"):
    app.command(entry.name)(entry.load())

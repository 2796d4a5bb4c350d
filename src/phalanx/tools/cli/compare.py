# SPDX-License-Identifier: Apache-2.0
"""phalanx compare: runs in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phalanx.tools.cli.common import Json, print_json, user_command


@user_command
def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="The folder of a run, or of a study with several runs."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write here a PNG file with accuracy against rounds, bytes and seconds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compares runs in one table, finished or not.

    Measurements are left out: they have no curves.

    \b
    Examples:
      phalanx compare runs/2026-01-31-120000-quickstart
      phalanx compare runs/*-quickstart --plot all.png
      phalanx compare runs/a/krum runs/b/krum --json
    """
    from phalanx.tools.report import tables
    from phalanx.tools.report.collect import collect
    from phalanx.tools.report.score import common_score

    if not runs:
        raise ValueError("compare needs folders of runs or of studies, such as runs/2026-01-31-120000-quickstart")
    collected = collect(runs)
    results = [r for r in collected if not r.measures]
    if collected and not results:
        raise ValueError("these folders hold measurements, which have no curves to compare")
    if not results:
        raise ValueError("no run in these folders has begun yet")
    if plot is not None:
        from phalanx.tools.report.plots import plot_comparison

        score = common_score(r.score for r in results)
        if score is None:
            have = ", ".join(dict.fromkeys(r.score.name for r in results))
            raise ValueError(f"a plot compares runs of one score, and these have {have}; plot them one by one")
        bands = any(pair is not None for r in results for pair in r.curve.clients)
        plot_comparison(results, f"test {score.name}{', shaded from client to client' if bands else ''}", plot)
    if as_json:
        print_json([{"label": r.label, "folder": str(r.path), "curve": vars(r.curve), **r.summary} for r in results])
        return
    tables.console().print(
        tables.results_table(((r.label, r.accuracy, r.summary) for r in results), [r.score for r in results])
    )
    if plot is not None:
        typer.echo(f"plot    {plot}")

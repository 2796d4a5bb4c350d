# SPDX-License-Identifier: Apache-2.0
"""phalanx probe: how long do link, work and schemes take here?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.distributed.job import team
from phalanx.tools.cli import asked
from phalanx.tools.cli.asked import Batch, Data, Model, Precision, Repeats, Schemes, Threads
from phalanx.tools.cli.common import Json, Only, Recipe, Scale, Settings, print_json, said

if TYPE_CHECKING:
    from phalanx.tools.advisor.probe import Probe


@said
def probe(
    recipe: Recipe = None,
    scale: Scale = None,
    settings: Settings = None,
    only: Only = None,
    model: Model = None,
    data: Data = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    schemes: Schemes = None,
    repeats: Repeats = 5,
    out: Annotated[Path | None, typer.Option(help="Write here the JSON document that advise reads.")] = None,
    as_json: Json = False,
) -> None:
    """Measures link, work of a step and schemes, for advise.

    What is measured are model, data, share of the batch and schemes of RECIPE, or without one those that the options
    name. The link is that between the processes of the job; without torchrun it stays unknown.

    \b
    Examples:
      torchrun --nproc-per-node 4 -m phalanx probe --out probe.json
      torchrun --nproc-per-node 4 -m phalanx probe --model lenet --data mnist \\
        --batch 32 --scheme "signum()"
      torchrun --nnodes 2 --nproc-per-node 1 --rdzv-endpoint host:29500 \\
        -m phalanx probe quickstart --only mean
      phalanx probe --model mlp --data digits --json
    """
    from phalanx.core.parser import parse
    from phalanx.tools.advisor.measure import measure, num_told
    from phalanx.training.run_folder import write_json

    asked.check_repeats(repeats)
    options = {"model": model, "data": data, "batch": batch, "threads": threads, "precision": precision}
    with team() as processes:
        order = processes.agree(
            lambda: _order(recipe, scale, settings or [], only or [], options, schemes or [], processes.size)
        )
        run, wanted = parse(order["run"]), [parse(text) for text in order["schemes"]]
        with asked.bar(num_told(wanted, processes, repeats), processes) as told:
            found = measure(run, wanted, processes, repeats, told=told)
        if processes.rank != 0:
            return
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, found.to_json())
        if as_json:
            print_json(found.to_json())
            return
        _show(found)
        if out is not None:
            typer.echo(f"probe   {out}")


def _order(
    recipe: str | None,
    scale: str | None,
    settings: Sequence[str],
    only: Sequence[str],
    options: dict[str, Any],
    schemes: Sequence[str],
    n: int,
) -> dict[str, Any]:
    """The run and the schemes to measure, as expressions."""
    from phalanx.tools.advisor.check import alike
    from phalanx.tools.runner.request import requested

    if recipe is None:
        if scale is not None or settings or only:
            raise ValueError("--scale, --set and --only belong to a recipe; name one, or use --model and --data")
        return {"run": repr(asked.configured(options, max(n, 1))), "schemes": [repr(s) for s in asked.schemes(schemes)]}
    asked.no_options(options, f"{recipe} says what to probe; use --set")
    runs = requested(recipe, scale, settings, only).runs
    if not runs:
        raise ValueError(
            f"{recipe} trains nothing that could be probed; name another recipe, or use --model and --data"
        )
    first, *others = runs.values()
    for label, run in list(runs.items())[1:]:
        alike(first, run, f"{recipe}, {label}")
    ran = [run.phases[0].scheme for run in (first, *others)]
    return {"run": repr(first), "schemes": [repr(s) for s in (asked.schemes(schemes) if schemes else ran)]}


def _show(found: Probe) -> None:
    from phalanx.tools.report import tables

    screen = tables.console()
    typer.echo(
        f"{found.processes} processes on {', '.join(sorted(set(found.hosts)))}, {asked.words(found, found.link, True)}"
    )
    if found.link is not None:
        screen.print(tables.link_table(found.link))
    screen.print(tables.costs_table(found))

# SPDX-License-Identifier: Apache-2.0
"""phalanx probe: measures the network, the work of a step, and schemes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.tools.cli import probe_options
from phalanx.tools.cli.common import Json, Only, Recipe, Scale, Settings, print_json, user_command
from phalanx.tools.cli.probe_options import Batch, Data, Model, Precision, Repeats, Schemes, Threads

if TYPE_CHECKING:
    from phalanx.tools.advisor.probe import Probe


@user_command
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
    out: Annotated[Path | None, typer.Option(help="Write here the JSON file that advise reads.")] = None,
    as_json: Json = False,
) -> None:
    """Measures network, work and schemes, as input for advise.

    It takes model, data, share of the batch and schemes from RECIPE, or from the options. The network is the one
    between the processes of the job; without torchrun it stays unknown.

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
    from phalanx.distributed.job import join_processes
    from phalanx.tools.advisor.measure import measure, num_progress_calls
    from phalanx.training.run_folder import write_json

    probe_options.check_repeats(repeats)
    options = {"model": model, "data": data, "batch": batch, "threads": threads, "precision": precision}
    with join_processes() as processes:
        request = processes.broadcast_from_rank0(
            lambda: _request(recipe, scale, settings or [], only or [], options, schemes or [], processes.size)
        )
        run, chosen = parse(request["run"]), [parse(text) for text in request["schemes"]]
        with probe_options.bar(num_progress_calls(chosen, processes, repeats), processes) as on_progress:
            measured = measure(run, chosen, processes, repeats, on_progress=on_progress)
        if processes.rank != 0:
            return
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, measured.to_json())
        if as_json:
            print_json(measured.to_json())
            return
        _show(measured)
        if out is not None:
            typer.echo(f"probe   {out}")


def _request(
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
    from phalanx.tools.runner.request import build_study

    if recipe is None:
        if scale is not None or settings or only:
            raise ValueError("--scale, --set and --only belong to a recipe; name one, or use --model and --data")
        return {
            "run": repr(probe_options.configured(options, max(n, 1))),
            "schemes": [repr(s) for s in probe_options.schemes(schemes)],
        }
    probe_options.no_options(options, f"{recipe} says what to probe; use --set")
    runs = build_study(recipe, scale, settings, only).runs
    if not runs:
        raise ValueError(
            f"{recipe} trains nothing that could be probed; name another recipe, or use --model and --data"
        )
    first, *others = runs.values()
    for label, run in list(runs.items())[1:]:
        alike(first, run, f"{recipe}, {label}")
    given = [run.phases[0].scheme for run in (first, *others)]
    chosen = probe_options.schemes(schemes) if schemes else given
    return {"run": repr(first), "schemes": [repr(scheme) for scheme in chosen]}


def _show(measured: Probe) -> None:
    from phalanx.tools.report import advice_tables, tables

    console = tables.console()
    hosts = ", ".join(sorted(set(measured.hosts)))
    typer.echo(f"{measured.processes} processes on {hosts}, {probe_options.describe(measured, measured.link, True)}")
    if measured.link is not None:
        console.print(advice_tables.link_table(measured.link))
    console.print(advice_tables.costs_table(measured))

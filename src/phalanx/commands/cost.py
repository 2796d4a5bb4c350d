# SPDX-License-Identifier: Apache-2.0
"""probe and advise: will compression help?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.commands.common import Json, Only, Scale, Settings, print_json, said
from phalanx.launch import Team, team

if TYPE_CHECKING:
    from phalanx.cost.link import Line, Link
    from phalanx.cost.probe import Probe
    from phalanx.phase import Run
    from phalanx.stage import Stage

MODEL, DATA, BATCH, THREADS, PRECISION = "resnet18()", "cifar10()", 64, 1, "float32"
LATENCY = "0.1ms"
NOTE = "Predicted is the time of a step, not how many steps are needed: biased and coarse schemes may need more."

Model = Annotated[str | None, typer.Option(metavar="EXPR", help=f"Model, such as lenet; {MODEL} if left out.")]
Data = Annotated[str | None, typer.Option(metavar="EXPR", help=f"Data set, such as digits; {DATA} if left out.")]
Batch = Annotated[int | None, typer.Option(help=f"Examples of one worker in a step; {BATCH} if left out.")]
Threads = Annotated[int | None, typer.Option(help=f"Threads of torch in each process; {THREADS} if left out.")]
Precision = Annotated[str | None, typer.Option(help=f"float32 or bf16; {PRECISION} if left out.")]
Schemes = Annotated[
    list[str] | None, typer.Option("--scheme", metavar="EXPR", help="A scheme; may be repeated; a choice if left out.")
]
Repeats = Annotated[int, typer.Option(min=1, help="Steps behind every number.")]


@said
def probe(
    recipe: Annotated[str | None, typer.Argument()] = None,
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
    out: Annotated[Path | None, typer.Option(help="Write the JSON document that advise reads here.")] = None,
    as_json: Json = False,
) -> None:
    """Measures the link between the processes of a job, the work of a step, and what each scheme costs.

    RECIPE is the name of a recipe, a run(...) expression, or a file that holds one: its model, data, share of the batch
    and schemes are measured. Without one, those that the options name. Without torchrun the link stays unknown.

    \b
    Examples:
      torchrun --nproc-per-node 4 -m phalanx probe --out probe.json
      torchrun --nproc-per-node 4 -m phalanx probe --model lenet --data mnist --batch 32 --scheme "signum()"
      torchrun --nnodes 2 --nproc-per-node 1 --rdzv-endpoint host:29500 -m phalanx probe quickstart --only mean
      phalanx probe --model mlp --data digits --json
    """
    from phalanx.cost.measure import measure, num_told
    from phalanx.parser import parse
    from phalanx.results import write_json

    options = {"model": model, "data": data, "batch": batch, "threads": threads, "precision": precision}
    with team() as processes:
        order = processes.agree(
            lambda: _order(recipe, scale, settings or [], only or [], options, schemes or [], processes.size)
        )
        run, wanted = parse(order["run"]), [parse(text) for text in order["schemes"]]
        with _bar(num_told(wanted, processes, repeats), processes) as told:
            found = measure(run, wanted, processes, repeats, told=told)
        if processes.rank != 0:
            return
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, found.to_json())
        if as_json:
            print_json(found.to_json())
            return
        _show_probe(found)
        if out is not None:
            typer.echo(f"probe   {out}")


@said
def advise(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="[PROBE.json] [RUN...]")] = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of each link: 100Mbit, 1Gbit, 12MB/s.")] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Of a message: 0.1ms; {LATENCY} if left out.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="One a process; as many as probed if left out.")] = None,
    step_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Forward and backward, such as 50ms; measured if left out.")
    ] = None,
    model: Model = None,
    data: Data = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    schemes: Schemes = None,
    repeats: Repeats = 2,
    checked: Annotated[bool, typer.Option("--check", help="Compare the predictions with the RUN folders.")] = False,
    as_json: Json = False,
) -> None:
    """Predicts the step time of each scheme, where it breaks even, and says whether to compress at all.

    PROBE.json comes from phalanx probe. Without one, the work and the schemes are measured here, in this process, and
    the link is what --bandwidth and --latency say. With --check, what RUN folders measured stands beside it.

    \b
    Examples:
      phalanx advise probe.json
      phalanx advise probe.json --workers 16 --bandwidth 1Gbit
      phalanx advise --bandwidth 100Mbit --workers 4 --model lenet --data mnist
      phalanx advise --bandwidth 10Gbit --latency 50us --workers 16 --step-time 80ms --scheme "chain(power_sgd(rank=4))"
      phalanx advise probe.json --check runs/2026-01-31-120000-run
    """
    from phalanx.cost import advise as advice
    from phalanx.cost.units import duration

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("advise is one process; run phalanx probe under torchrun and give advise its file")
    options = {"model": model, "data": data, "batch": batch, "threads": threads, "precision": precision}
    file, runs = (paths or [None])[0], (paths or [])[1:]
    work_s = None if step_time is None else duration(step_time)
    line = _line(bandwidth, latency)
    if checked:
        _check(file, runs, line, as_json)
        return
    if runs:
        raise ValueError(f"{runs[0]} stands behind the probe; add --check to compare with runs")
    if file is None:
        found = _measured(line, workers, work_s, options, schemes or [], repeats)
    else:
        _no_options(options, f"{file} says what was probed")
        found = advice.chosen(_read(file), schemes or [])
    link = _link(found, line)
    n = found.processes if workers is None else workers
    given = advice.advise(found, link, n, work_s)
    if as_json:
        print_json(
            {
                "workers": n,
                "link": {kind: vars(link.line(kind)) for kind in ("gather", "reduce")},
                "measured_link": line is None,
                "run": repr(found.run),
                "batch": found.batch,
                "schemes": [row.to_json() for row in given.lines],
                "sentence": given.sentence,
                "note": NOTE,
            }
        )
        return
    from phalanx.report import tables

    typer.echo(f"{n} workers, {_words(found, link, measured=line is None)}")
    tables.console().print(tables.advice_table(given.lines))
    typer.echo(f"\n{given.sentence}\n{NOTE}")


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
    from phalanx.cost.check import alike
    from phalanx.study import plan

    if recipe is None:
        if scale is not None or settings or only:
            raise ValueError("--scale, --set and --only belong to a recipe; name one, or use --model and --data")
        return {"run": repr(_configured(options, max(n, 1))), "schemes": [repr(s) for s in _schemes(schemes)]}
    _no_options(options, f"{recipe} says what to probe; use --set")
    runs = plan(recipe, scale, settings, only).runs
    first, *others = runs.values()
    for label, run in list(runs.items())[1:]:
        alike(first, run, f"{recipe}, {label}")
    ran = [run.phases[0].scheme for run in (first, *others)]
    return {"run": repr(first), "schemes": [repr(s) for s in (_schemes(schemes) if schemes else ran)]}


def _configured(options: dict[str, Any], n: int) -> Run:
    """A run of n workers with these options."""
    from phalanx.cost.quality import PLAIN
    from phalanx.data.dataset import Data
    from phalanx.expression import require
    from phalanx.models.model import Model
    from phalanx.parser import parse
    from phalanx.phase import Phase, Run
    from phalanx.work import Gradient

    def named(text: str | None, default: str, kind: type, word: str) -> Any:
        text = default if text is None else text
        made = parse(f"{text}()" if text.strip().isidentifier() else text)
        require(isinstance(made, kind), f"--{word} takes a {word}, got {made!r}; phalanx list {word} names them")
        return made

    batch = BATCH if options["batch"] is None else options["batch"]
    require(batch >= 1, f"--batch takes at least 1 example, got {batch}")
    model = named(options["model"], MODEL, Model, "model")
    data = named(options["data"], DATA, Data, "data")
    phase = Phase(Gradient(batch * n), parse(PLAIN))
    threads = THREADS if options["threads"] is None else options["threads"]
    return Run(data, model, (phase,), workers=n, threads=threads, precision=options["precision"] or PRECISION)


def _schemes(texts: Sequence[str]) -> list[Stage]:
    from phalanx.cost.quality import DEFAULTS
    from phalanx.exchange import as_scheme

    return [as_scheme(text) for text in texts or DEFAULTS]


def _no_options(options: dict[str, Any], sentence: str) -> None:
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{sentence}; leave out {' and '.join(given)}")


def _line(bandwidth: str | None, latency: str | None) -> Line | None:
    """The link that the user describes, if any."""
    from phalanx.cost.link import Line
    from phalanx.cost.units import bandwidth as rate
    from phalanx.cost.units import duration

    if bandwidth is None:
        if latency is not None:
            raise ValueError("--latency describes a link together with --bandwidth; give both")
        return None
    return Line(duration(latency or LATENCY), rate(bandwidth))


def _link(found: Probe, line: Line | None) -> Link:
    link = line or found.link
    if link is None:
        raise ValueError(
            "this probe was taken by one process and knows no link; give --bandwidth, or probe with torchrun"
        )
    return link


def _measured(
    line: Line | None,
    workers: int | None,
    work_s: float | None,
    options: dict[str, Any],
    schemes: Sequence[str],
    repeats: int,
) -> Probe:
    """A probe of this process alone."""
    from phalanx.cost.measure import measure, num_told
    from phalanx.cost.model import check_workers

    if line is None or workers is None:
        raise ValueError(
            "advise needs a probe, or --bandwidth and --workers, such as --bandwidth 1Gbit --workers 16; "
            "torchrun ... -m phalanx probe --out FILE makes a probe"
        )
    check_workers(workers)
    wanted, run = _schemes(schemes), _configured(options, 1)
    with _bar(num_told(wanted, Team(), repeats), Team()) as told:
        return measure(run, wanted, Team(), repeats, workers, work_s, told)


def _read(file: Path) -> Probe:
    from phalanx.cost.probe import Probe

    return Probe.read(file)


def _check(file: Path | None, runs: Sequence[Path], line: Line | None, as_json: bool) -> None:
    from phalanx.cost.check import check
    from phalanx.report import tables

    if file is None or not runs:
        raise ValueError("--check needs a probe and runs: phalanx advise PROBE.json --check RUN...")
    found = _read(file)
    link = _link(found, line)
    compared = check(found, link, runs)
    if as_json:
        worst = max(abs(c.error) for c in compared)
        print_json({"worst": worst, "runs": [c.to_json() for c in compared]})
        return
    tables.console().print(tables.check_table(compared))


def _bar(total: int, processes: Team) -> Any:
    from phalanx.report.progress import Steps

    return Steps(total) if processes.rank == 0 else nullcontext(lambda words: None)


def _show_probe(found: Probe) -> None:
    from phalanx.report import tables

    screen = tables.console()
    typer.echo(
        f"{found.processes} processes on {', '.join(sorted(set(found.hosts)))}, {_words(found, found.link, True)}"
    )
    if found.link is not None:
        screen.print(tables.link_table(found.link))
    screen.print(tables.costs_table(found))


def _words(found: Probe, link: Link | None, measured: bool) -> str:
    """What the numbers are of, in a line."""
    from phalanx.cost.units import bits
    from phalanx.report.tables import seconds

    work = f"{found.run.model!r}, {found.parameters:,} parameters, {found.batch} examples a worker"
    work += f"; forward and backward {seconds(found.work_s)}"
    if link is None:
        return f"{work}; link unknown: a process alone has none"
    lines = {kind: link.line(kind) for kind in (("gather", "reduce") if measured else ("gather",))}
    words = {"gather": "all-gather ", "reduce": "all-reduce "} if measured else {"gather": ""}
    each = [f"{words[k]}{bits(x.bandwidth)} and {seconds(x.latency_s)} a message" for k, x in lines.items()]
    return f"{work}\nlink: {', '.join(each)}"

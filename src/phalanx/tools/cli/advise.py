# SPDX-License-Identifier: Apache-2.0
"""phalanx advise: will compression help?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.distributed.job import Processes
from phalanx.tools.cli import asked, growth, redundancy
from phalanx.tools.cli.asked import Batch, Data, Model, Precision, Schemes, Threads
from phalanx.tools.cli.common import Json, print_json, said

if TYPE_CHECKING:
    from phalanx.tools.advisor.link import Line, Link
    from phalanx.tools.advisor.probe import Probe

LATENCY = "0.1ms"
REPEATS = 2
NOTE = "Predicted is the time of a step, not how many steps are needed: biased and coarse schemes may need more."


@said
def advise(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[PROBE.json] [RUN...]", help="A file of phalanx probe; run folders with --check."),
    ] = None,
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="Of each link: 100Mbit, 1Gbit, 12MB/s.")] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Of a message: 0.1ms; {LATENCY} if left out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="One a process; as many as probed if left out.")
    ] = None,
    step_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="Forward and backward, such as 50ms; measured if left out.")
    ] = None,
    model: Model = None,
    data: Data = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    schemes: Schemes = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="STEPS", help=f"Behind every number; {REPEATS} if left out.")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="A server takes the payloads, as in phalanx run --server.")
    ] = False,
    scale_to: Annotated[
        int | None, typer.Option(metavar="N", help="Predict for more and more workers, doubling up to N.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="With --scale-to: a simulation of every message beside the formulas.")
    ] = False,
    stragglers: Annotated[
        float | None,
        typer.Option(metavar="RATIO", help="With --simulate: relative deviation of a worker's forward and backward."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --scale-to: draw the steps in this PNG file.")] = None,
    checked: Annotated[bool, typer.Option("--check", help="Compare the predictions with the RUN folders.")] = False,
    byzantine: Annotated[
        int | None, typer.Option(metavar="Q", help="How many of the workers are Byzantine; asks about redundancy.")
    ] = None,
    r: Annotated[
        list[int] | None,
        typer.Option("--r", metavar="R", help="Workers in a group; may be repeated; odd ones to 15 if left out."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help=f"Probability that is accepted, 0 to 1; {redundancy.RISK} if left out."),
    ] = None,
    redrawn: Annotated[
        int | None, typer.Option(metavar="ROUNDS", help="Byzantine workers are drawn anew in each of so many rounds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predicts step times, and whether to compress at all.

    It gives the step time of each scheme and the bandwidth at which it breaks even. Without PROBE.json the work and the
    schemes are measured here, in this process, and the link is what --bandwidth and --latency say. With --check, what
    RUN folders measured stands beside it.

    With --scale-to it predicts for growing numbers of workers, and with --server for a parameter server.

    With --byzantine it says instead how much redundancy a vote needs: how many groups of r workers so many Byzantine
    ones win, and which rule over the votes stands that.

    \b
    Examples:
      phalanx advise probe.json
      phalanx advise probe.json --workers 16 --bandwidth 1Gbit
      phalanx advise --bandwidth 100Mbit --workers 4 --model lenet --data mnist
      phalanx advise --bandwidth 10Gbit --latency 50us --workers 16 \\
        --step-time 80ms --scheme "chain(power_sgd(rank=4))"
      phalanx advise probe.json --workers 16 --scale-to 1024 --simulate
      phalanx advise probe.json --server --workers 16 --bandwidth 1Gbit
      phalanx advise probe.json --check runs/2026-01-31-120000-run
      phalanx advise --byzantine 5 --workers 45
      phalanx advise --byzantine 5 --workers 45 --r 3 --r 5 --risk 0.001 \\
        --redrawn 1000 --json
    """
    if byzantine is not None:
        asking = {"a probe": paths, "--bandwidth": bandwidth, "--latency": latency, "--step-time": step_time}
        asking |= {"--model": model, "--data": data, "--batch": batch, "--threads": threads, "--precision": precision}
        asking |= {"--server": server, "--scale-to": scale_to, "--simulate": simulated, "--plot": plot}
        redundancy.check_others({**asking, "--scheme": schemes, "--check": checked, "--repeats": repeats})
        redundancy.redundancy(workers, byzantine, r or [], risk, redrawn, as_json)
        return
    for option, value in (("--r", r), ("--risk", risk), ("--redrawn", redrawn)):
        if value is not None:
            raise ValueError(f"{option} belongs to a question about redundancy; add --byzantine Q")
    repeats = REPEATS if repeats is None else repeats
    asked.check_repeats(repeats)
    from phalanx.tools.advisor import advise as advice
    from phalanx.tools.advisor.served import at_server
    from phalanx.tools.advisor.units import duration

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("advise is one process; run phalanx probe under torchrun and give advise its file")
    options = {"model": model, "data": data, "batch": batch, "threads": threads, "precision": precision}
    file, runs = (paths or [None])[0], (paths or [])[1:]
    work_s = None if step_time is None else duration(step_time)
    line = _line(bandwidth, latency)
    growth.check_options(scale_to, simulated, stragglers, plot)
    if checked:
        growth.check_alone(scale_to, server)
        _check(file, runs, line, as_json)
        return
    if runs:
        raise ValueError(f"{runs[0]} stands behind the probe; add --check to compare with runs")
    if file is None:
        found = _measured(line, workers, work_s, options, schemes or [], repeats)
    else:
        asked.no_options(options, f"{file} says what was probed")
        found = advice.chosen(_read(file), schemes or [])
    link = _link(found, line)
    n = found.processes if workers is None else workers
    left: tuple[str, ...] = ()
    if server:
        found, left = at_server(found)
    if scale_to is not None:
        straggling = (stragglers or 0.0) if simulated else None
        growth.growth(found, link, (n, scale_to), work_s, straggling, plot, left, line is None, as_json)
        return
    given = advice.advise(found, link, n, work_s)
    if as_json:
        print_json(
            {
                "workers": n,
                "link": {kind: vars(link.line(kind)) for kind in ("gather", "reduce")},
                "measured_link": line is None,
                "server": server,
                "run": repr(found.run),
                "batch": found.batch,
                "schemes": [row.to_json() for row in given.lines],
                "sentence": given.sentence,
                "note": NOTE,
            }
        )
        return
    from phalanx.tools.report import tables

    typer.echo(f"{n} workers, {asked.words(found, link, measured=line is None)}")
    tables.console().print(tables.advice_table(given.lines))
    typer.echo(f"\n{given.sentence}\n{NOTE}{growth.left_words(left)}")


def _line(bandwidth: str | None, latency: str | None) -> Line | None:
    """The link that the user describes, if any."""
    from phalanx.tools.advisor.link import Line
    from phalanx.tools.advisor.units import bandwidth as rate
    from phalanx.tools.advisor.units import duration

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
    from phalanx.tools.advisor.measure import measure, num_told
    from phalanx.tools.advisor.model import check_workers

    if line is None or workers is None:
        raise ValueError(
            "advise needs a probe, or --bandwidth and --workers, such as --bandwidth 1Gbit --workers 16; "
            "torchrun ... -m phalanx probe --out FILE makes a probe"
        )
    check_workers(workers)
    wanted, run = asked.schemes(schemes), asked.configured(options, 1)
    with asked.bar(num_told(wanted, Processes(), repeats), Processes()) as told:
        return measure(run, wanted, Processes(), repeats, workers, work_s, told)


def _read(file: Path) -> Probe:
    from phalanx.tools.advisor.probe import Probe

    return Probe.read(file)


def _check(file: Path | None, runs: Sequence[Path], line: Line | None, as_json: bool) -> None:
    from phalanx.tools.advisor.check import check
    from phalanx.tools.report import tables

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

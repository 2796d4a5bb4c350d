# SPDX-License-Identifier: Apache-2.0
"""phalanx advise: predicts step times, and whether compression helps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phalanx.tools.cli import growth, probe_options, redundancy
from phalanx.tools.cli.common import Json, print_json, user_command
from phalanx.tools.cli.probe_options import Batch, Data, Model, Precision, Schemes, Threads

if TYPE_CHECKING:
    from phalanx.tools.advisor.link import Line, Link
    from phalanx.tools.advisor.probe import Probe

LATENCY = "0.1ms"
REPEATS = 2
NOTE = "This predicts the time of a step, not the number of steps: biased and coarse schemes may need more of them."


@user_command
def advise(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PROBE.json] [RUN...]", help="The file that phalanx probe wrote; run folders with --check."
        ),
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Bandwidth of each link: 100Mbit, 1Gbit, 12MB/s.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help=f"Latency of a message, such as 50us; {LATENCY} if left out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Number of workers; as many as probed if left out.")
    ] = None,
    step_time: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Time of forward and backward, such as 50ms; measured if left out."),
    ] = None,
    model: Model = None,
    data: Data = None,
    batch: Batch = None,
    threads: Threads = None,
    precision: Precision = None,
    schemes: Schemes = None,
    repeats: Annotated[
        int | None, typer.Option(metavar="STEPS", help=f"Steps behind every number; {REPEATS} if left out.")
    ] = None,
    server: Annotated[
        bool, typer.Option("--server", help="A server receives the payloads, as in phalanx run --server.")
    ] = False,
    scale_to: Annotated[
        int | None, typer.Option(metavar="N", help="Predict also for 2, 4, 8 ... times as many workers, up to N.")
    ] = None,
    simulated: Annotated[
        bool, typer.Option("--simulate", help="With --scale-to: simulate every message too, besides the formulas.")
    ] = False,
    stragglers: Annotated[
        float | None,
        typer.Option(
            metavar="RATIO", help="With --simulate: relative standard deviation of a worker's forward and backward."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="With --scale-to: plot the step times in this PNG file.")] = None,
    checked: Annotated[
        bool, typer.Option("--check", help="Compare the predictions with what the RUN folders measured.")
    ] = False,
    byzantine: Annotated[
        int | None, typer.Option(metavar="Q", help="Number of Byzantine workers; then advise is about redundancy.")
    ] = None,
    r: Annotated[
        list[int] | None,
        typer.Option("--r", metavar="R", help="Workers in a group; may be repeated; odd numbers up to 15 if left out."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help=f"Accepted probability of a wrong result, 0 to 1; {redundancy.RISK} if left out."
        ),
    ] = None,
    redrawn: Annotated[
        int | None,
        typer.Option(metavar="ROUNDS", help="The Byzantine workers are drawn anew in each of ROUNDS rounds."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predicts step times, and whether to compress at all.

    It prints the step time of each scheme, and the bandwidth below which the scheme helps. Without PROBE.json it
    measures work and schemes in this process, and --bandwidth and --latency describe the network. With --check it
    compares the predictions with the times that RUN folders measured.

    With --scale-to it predicts for growing numbers of workers, and with --server for a parameter server.

    With --byzantine it says instead how much redundancy a vote needs: in how many groups of r workers the Byzantine
    ones win the vote, and which aggregation rule behind the vote tolerates that.

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
        others = {"a probe": paths, "--bandwidth": bandwidth, "--latency": latency, "--step-time": step_time}
        others |= {"--model": model, "--data": data, "--batch": batch, "--threads": threads, "--precision": precision}
        others |= {"--server": server, "--scale-to": scale_to, "--simulate": simulated, "--plot": plot}
        redundancy.check_others({**others, "--scheme": schemes, "--check": checked, "--repeats": repeats})
        redundancy.redundancy(workers, byzantine, r or [], risk, redrawn, as_json)
        return
    for option, value in (("--r", r), ("--risk", risk), ("--redrawn", redrawn)):
        if value is not None:
            raise ValueError(f"{option} is about redundancy; add --byzantine Q")
    repeats = REPEATS if repeats is None else repeats
    probe_options.check_repeats(repeats)
    from phalanx.tools.advisor import advise as advice
    from phalanx.tools.advisor.served import at_server
    from phalanx.tools.advisor.units import duration

    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("advise runs in one process; run phalanx probe under torchrun and give advise its file")
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
        raise ValueError(f"{runs[0]} follows the probe; add --check to compare with runs")
    if file is None:
        probe = _measured(line, workers, work_s, options, schemes or [], repeats)
    else:
        probe_options.no_options(options, f"{file} says what was probed")
        probe = advice.chosen(_read(file), schemes or [])
    link = _link(probe, line)
    n = probe.processes if workers is None else workers
    left_out: tuple[str, ...] = ()
    if server:
        probe, left_out = at_server(probe)
    if scale_to is not None:
        deviation = (stragglers or 0.0) if simulated else None
        growth.growth(probe, link, (n, scale_to), work_s, deviation, plot, left_out, line is None, as_json)
        return
    prediction = advice.advise(probe, link, n, work_s)
    if as_json:
        print_json(
            {
                "workers": n,
                "link": {kind: vars(link.line(kind)) for kind in ("gather", "reduce")},
                "measured_link": line is None,
                "server": server,
                "run": repr(probe.run),
                "batch": probe.batch,
                "schemes": [row.to_json() for row in prediction.lines],
                "sentence": prediction.sentence,
                "note": NOTE,
            }
        )
        return
    from phalanx.tools.report import advice_tables, tables

    typer.echo(f"{n} workers, {probe_options.describe(probe, link, measured=line is None)}")
    tables.console().print(advice_tables.advice_table(prediction.lines))
    typer.echo(f"\n{prediction.sentence}\n{NOTE}{growth.left_out_sentence(left_out)}")


def _line(bandwidth: str | None, latency: str | None) -> Line | None:
    """The link that --bandwidth and --latency describe; None without them."""
    from phalanx.tools.advisor.link import Line
    from phalanx.tools.advisor.units import bandwidth as rate
    from phalanx.tools.advisor.units import duration

    if bandwidth is None:
        if latency is not None:
            raise ValueError("--latency describes a link only together with --bandwidth; give both")
        return None
    return Line(duration(latency or LATENCY), rate(bandwidth))


def _link(probe: Probe, line: Line | None) -> Link:
    link = line or probe.link
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
    """A probe that this process takes alone."""
    from phalanx.distributed.job import Processes
    from phalanx.tools.advisor.measure import measure, num_progress_calls
    from phalanx.tools.advisor.model import check_workers

    if line is None or workers is None:
        raise ValueError(
            "advise needs a probe, or --bandwidth and --workers, such as --bandwidth 1Gbit --workers 16; "
            "torchrun ... -m phalanx probe --out FILE makes a probe"
        )
    check_workers(workers)
    chosen, run = probe_options.schemes(schemes), probe_options.configured(options, 1)
    with probe_options.bar(num_progress_calls(chosen, Processes(), repeats), Processes()) as on_progress:
        return measure(run, chosen, Processes(), repeats, workers, work_s, on_progress)


def _read(file: Path) -> Probe:
    from phalanx.tools.advisor.probe import Probe

    return Probe.read(file)


def _check(file: Path | None, runs: Sequence[Path], line: Line | None, as_json: bool) -> None:
    from phalanx.tools.advisor.check import check
    from phalanx.tools.report import advice_tables, tables

    if file is None or not runs:
        raise ValueError("--check needs a probe and runs: phalanx advise PROBE.json --check RUN...")
    probe = _read(file)
    compared = check(probe, _link(probe, line), runs)
    if as_json:
        worst = max(abs(c.error) for c in compared)
        print_json({"worst": worst, "runs": [c.to_json() for c in compared]})
        return
    tables.console().print(advice_tables.check_table(compared))

# SPDX-License-Identifier: Apache-2.0
"""Real `torchrun` jobs over a slow network between hosts that are made on this machine; needs root and iproute2.

    python benchmarks/network.py link --rates 100mbit 1gbit 10gbit --workers 4
    python benchmarks/network.py breakdown --rates 100mbit 1gbit 10gbit --workers 2 4 --json out.json --plot out.png
    python benchmarks/network.py exchange --rates 100mbit 1gbit --workers 4 8 --json out.json
    python benchmarks/network.py advise --rates 100mbit 1gbit --workers 2 4 --json out.json
    python benchmarks/network.py scaling --rate 100mbit --workers 4 2 8 16 --json out.json --plot out.png
    python benchmarks/network.py convergence --rate 100mbit --workers 4 --seeds 0 1 2 --target 0.58 --out runs/slow
    python benchmarks/network.py reach runs/seed-0 runs/seed-1 --steps breakdown.json --target 0.55

`link` shows what the links carry and how near gloo's collectives come to it. `breakdown` splits the step of every
scheme of a recipe as figure 3.1 of the dissertation does, beside a plain DistributedDataParallel step. `exchange` times
the exchange of one row alone, beside gloo's all-reduce of the same row. `advise` puts
what `phalanx advise` predicts from a probe across the hosts beside such steps. `scaling` lets the hosts grow, with
and without a server, beside what a probe of the first number predicts and simulates; --json adds to what the file has.
`convergence` trains to the end and reports seconds to an accuracy; stopped, it goes on when started again with the same
--out. `reach` does so without training: it puts the steps of a breakdown under the rounds that simulations of the same
recipe took, which end alike.
Namespaces, links and limits are removed at the end, also after Ctrl-C; what a killed run left is removed by the next.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from slow_network import hosts

RECIPE = "atomo-convergence"
FAULT, FAILED, STOPPED = 2, 1, 130  # exit codes: an error of the user's or of the machine, a failed job, Ctrl-C


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    network = argparse.ArgumentParser(add_help=False)
    network.add_argument("--delay", type=float, default=0.0, metavar="MS", help="milliseconds from host to host")
    network.add_argument("--json", type=Path, help="write the report to this file")
    network.add_argument("--limit", type=float, default=None, metavar="S", help="seconds that one job may take")
    many = argparse.ArgumentParser(add_help=False)
    many.add_argument("--rates", nargs="+", default=["100mbit", "1gbit", "10gbit"], help="of every link, each way")
    many.add_argument("--workers", nargs="+", type=int, default=[2, 4], help="hosts, with one worker each")
    what = argparse.ArgumentParser(add_help=False)
    what.add_argument("--recipe", default=RECIPE, help=f"or a run(...), or a file that holds one (default {RECIPE})")
    what.add_argument("--scale", help="of the recipe")
    what.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="these runs of the recipe")
    what.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", dest="settings", help="as for phalanx run")
    what.add_argument("--schemes", nargs="+", default=[], help="the first run, under these schemes instead")
    what.add_argument("--plot", type=Path, help="write the figure here")
    modes.add_parser("link", parents=[network, many], help="throughput and gloo's collectives")
    breakdown = modes.add_parser("breakdown", parents=[network, many, what], help="figure 3.1")
    breakdown.add_argument("--rounds", type=int, default=30, help="of each short run (default 30)")
    breakdown.add_argument("--dropped", type=int, default=5, help="rounds at the start that do not count (default 5)")
    exchange = modes.add_parser("exchange", parents=[network, many], help="the exchange of one row alone")
    exchange.add_argument("--entries", type=int, default=11_173_962, help="of the row (default: those of ResNet-18)")
    exchange.add_argument("--rounds", type=int, default=7, help="interleaved rounds behind a first one (default 7)")
    exchange.add_argument("--schemes", nargs="+", default=[], help="in place of all codes gathered and scattered")
    advise = modes.add_parser("advise", parents=[network, many, what], help="predictions beside measured steps")
    advise.add_argument("--rounds", type=int, default=30, help="of each short run (default 30)")
    scaling = modes.add_parser("scaling", parents=[network], help="steps of more and more hosts")
    scaling.add_argument("--rate", default="100mbit", help="of every link, each way")
    scaling.add_argument("--workers", nargs="+", type=int, default=[4, 2, 8, 16], help="the first number is probed")
    scaling.add_argument("--rounds", type=int, default=24, help="of each short run (default 24)")
    scaling.add_argument("--dropped", type=int, default=6, help="rounds at the start that do not count (default 6)")
    scaling.add_argument("--probe", type=Path, help="predict from this one; written if there is no such file")
    scaling.add_argument("--plot", type=Path, help="write the figure here")
    convergence = modes.add_parser("convergence", parents=[network, what], help="time to a fixed accuracy")
    convergence.add_argument("--rate", default="100mbit", help="of every link, each way")
    convergence.add_argument("--workers", type=int, default=4, help="hosts, with one worker each")
    convergence.add_argument("--seeds", nargs="+", type=int, default=[0])
    convergence.add_argument("--target", type=float, default=0.58, help="test accuracy in (0, 1) (default 0.58)")
    convergence.add_argument(
        "--baseline", metavar="LABEL", help="what speed-ups refer to (default: the uncompressed run)"
    )
    convergence.add_argument("--out", type=Path, required=True, help="folder of the runs; go on in it if it exists")
    reach = modes.add_parser("reach", help="time to a fixed accuracy, of simulated rounds and measured steps")
    reach.add_argument("folders", nargs="+", type=Path, help="studies of the recipe, one for each seed")
    reach.add_argument("--steps", type=Path, required=True, help="JSON of a breakdown at one rate")
    reach.add_argument("--target", type=float, default=0.55, help="test accuracy in (0, 1) (default 0.55)")
    reach.add_argument("--baseline", metavar="LABEL", help="what speed-ups refer to (default: plain DDP)")
    reach.add_argument("--json", type=Path, help="write the report to this file")
    reach.add_argument("--plot", type=Path, help="write the figure here")
    args = parser.parse_args(argv)
    for rate in getattr(args, "rates", [getattr(args, "rate", "1gbit")]):
        hosts.bits_per_s(rate)
    if args.mode in ("breakdown", "scaling") and not 0 <= args.dropped < args.rounds:
        raise ValueError(f"{args.mode} needs 0 <= dropped < rounds, got {args.dropped} and {args.rounds}")
    if args.mode in ("convergence", "reach") and not 0 < args.target < 1:
        raise ValueError(f"the target is an accuracy in (0, 1), such as 0.58, got {args.target:g}")
    return args


def link(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the links carry."""
    from phalanx.tools.report import tables
    from slow_network.link import measure

    measured = measure(args.rates, args.workers, args.delay)
    rows = []
    for line in measured:
        for size in line["collectives"]:
            rows.append(
                [
                    *(str(line["workers"]), line["rate"], f"{line['throughput']['bits_per_s'] / 1e6:,.0f} Mbit/s"),
                    tables.size(size["bytes"]),
                    *(f"{1e3 * size[f'{p}{c}_s']:.2f}" for c in ("all_reduce", "all_gather") for p in ("", "ideal_")),
                ]
            )
    header = ("workers", "rate", "link", "bytes", "all-reduce", "at least", "all-gather", "at least")
    tables.console().print(tables.plain_table("milliseconds, medians", header, rows))
    return {"links": measured}


def breakdown(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the parts of a step's time."""
    from phalanx.tools.report import tables
    from slow_network import breakdown, jobs

    study = jobs.with_schemes(jobs.ask(args.recipe, args.scale, args.only, args.settings), args.schemes)
    limit_s = args.limit or 120 + 5 * args.rounds * len(study.runs)
    lines = breakdown.measure(study, args.workers, args.rates, args.delay, args.rounds, args.dropped, limit_s, _say)
    tables.console().print(breakdown.table(lines))
    if args.plot:
        from slow_network.plots import plot_breakdown

        plot_breakdown(lines, f"{study.recipe}: time of a step", args.plot)
    return {"study": study.to_json(), "rounds": args.rounds, "dropped": args.dropped, "lines": lines}


def exchange(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the exchange of one row."""
    from phalanx.core.parser import parse
    from phalanx.core.stage import check_scheme
    from phalanx.tools.report import tables
    from slow_network import exchange

    if args.rounds < 1 or args.entries < 3:
        raise ValueError(f"exchange needs rounds >= 1 and entries >= 3, got {args.rounds} and {args.entries}")
    wanted = args.schemes or exchange.schemes()
    for text in wanted:
        check_scheme(parse(text), min(args.workers))
    limit_s = args.limit or 300 + 20 * (args.rounds + 1) * len(wanted)
    rest = (args.entries, args.rounds, wanted, limit_s, _say)
    lines = exchange.measure(args.workers, args.rates, args.delay, *rest)
    tables.console().print(exchange.table(lines))
    return {"entries": args.entries, "rounds": args.rounds, "lines": lines}


def advise(args: argparse.Namespace) -> dict[str, Any]:
    """Predicted and measured time of a step."""
    from phalanx.tools.report import tables
    from slow_network import jobs, predictions

    study = jobs.with_schemes(jobs.ask(args.recipe, args.scale, args.only, args.settings), args.schemes)
    limit_s = args.limit or 300 + 5 * args.rounds * len(study.runs)
    lines = predictions.measure(study, args.workers, args.rates, args.delay, args.rounds, limit_s, _say)
    tables.console().print(predictions.table(lines))
    return {"study": study.to_json(), "rounds": args.rounds, "lines": lines}


def scaling(args: argparse.Namespace) -> dict[str, Any]:
    """Measured and predicted communication of more and more hosts; lines of an earlier report at --json are kept."""
    import json
    import tempfile

    from phalanx.tools.report import tables
    from slow_network import scaling

    lines = json.loads(args.json.read_text())["lines"] if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory(prefix="phalanx-") as folder:
        base, limit_s = args.probe or Path(folder) / "probe.json", args.limit or 900
        rest = (args.rounds, args.dropped, base, limit_s, _say)
        measured = scaling.measure(args.workers, args.rate, args.delay, *rest)
    kept = [line for line in lines if line["workers"] not in args.workers]
    lines = sorted(kept + measured, key=lambda line: line["workers"])
    tables.console().print(scaling.table(lines))
    if args.plot:
        from slow_network.plots import plot_scaling

        plot_scaling(lines, f"communication of a step at {args.rate}", args.plot)
    return {"run": scaling.RUN, "share": scaling.SHARE, "rounds": args.rounds, "dropped": args.dropped, "lines": lines}


def convergence(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the time to an accuracy."""
    from phalanx.core.registry import suggest
    from phalanx.tools.report import tables
    from slow_network import convergence, jobs

    study = jobs.with_schemes(jobs.ask(args.recipe, args.scale, args.only, args.settings), args.schemes)
    baseline = args.baseline or convergence.uncompressed(study.runs)
    if baseline is not None and baseline not in study.runs:
        raise ValueError(f"no run is labelled {baseline!r}; {suggest(baseline, list(study.runs))}")
    limit_s = args.limit or 3600 * len(study.runs)
    results, achieved = convergence.run_all(
        study, args.workers, args.rate, args.delay, args.seeds, args.out, limit_s, _say
    )
    report = convergence.report(results, args.target, baseline)
    tables.console().print(convergence.table(report))
    if args.plot:
        from slow_network.plots import plot_convergence

        title = f"{study.recipe}: {args.workers} workers, {args.rate}"
        plot_convergence(report, title, args.plot)
    network = {"workers": args.workers, "rate": args.rate, "achieved_bits_per_s": achieved}
    return {"study": study.to_json(), **network, **report}


def reach(args: argparse.Namespace) -> dict[str, Any]:
    """Computes the time to an accuracy without training over the network."""
    import json

    from phalanx.core.registry import suggest
    from phalanx.tools.report import tables
    from phalanx.tools.report.collect import collect
    from phalanx.training.phase import Run
    from slow_network import breakdown, convergence
    from slow_network.reach import rescaled

    if not args.steps.is_file():
        raise ValueError(f"{args.steps} is not there; --steps takes the JSON that breakdown wrote")
    measured = json.loads(args.steps.read_text())
    jobs = {result.name: result.job for result in collect(args.folders)}
    plain = convergence.uncompressed({label: job for label, job in jobs.items() if isinstance(job, Run)})
    results = rescaled(args.folders, measured["lines"], plain or "")
    baseline = args.baseline or breakdown.DDP
    labels = list(dict.fromkeys(result.label for runs in results.values() for result in runs))
    if baseline not in labels:
        raise ValueError(f"no measured run is labelled {baseline!r}; {suggest(baseline, labels)}")
    report = convergence.report(results, args.target, baseline)
    tables.console().print(convergence.table(report))
    line = measured["lines"][0]
    if args.plot:
        from slow_network.plots import plot_convergence

        plot_convergence(report, f"{measured['study']['recipe']}: {line['workers']} workers, {line['rate']}", args.plot)
    network = {"workers": line["workers"], "rate": line["rate"], "steps": measured["setting"]}
    return {"study": measured["study"], **network, **report}


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def _asked_to_stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Runs the requested mode; removes all hosts at the end."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _asked_to_stop)
    try:
        args = arguments()
        modes = {"link": link, "breakdown": breakdown, "exchange": exchange, "advise": advise, "scaling": scaling}
        modes |= {"convergence": convergence, "reach": reach}
        if args.mode != "reach":
            hosts.check()
        document = modes[args.mode](args)
        if args.json:
            from phalanx.training.run_folder import about, write_json

            args.json.parent.mkdir(parents=True, exist_ok=True)
            setting = {"delay_ms": getattr(args, "delay", 0.0), "load": os.getloadavg()[0], **about()}
            write_json(args.json, {**document, "setting": setting})
    except ValueError as error:
        _say(f"error: {error}")
        sys.exit(FAULT)
    except hosts.JobFailed as error:
        _say(f"error: {error}")
        sys.exit(FAILED)
    except KeyboardInterrupt:
        _say("stopped; the hosts are removed")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()

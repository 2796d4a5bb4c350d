# SPDX-License-Identifier: Apache-2.0
"""Steps of more and more hosts, among processes and at a server, beside what the cost model and the simulation say."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

import phalanx as px
from phalanx.core.stage import TooFewRows, check_scheme
from phalanx.tools.advisor.check import measured_step
from phalanx.tools.advisor.link import Line, Link
from phalanx.tools.advisor.model import Cost, predict
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import PLAIN
from phalanx.tools.advisor.served import served
from phalanx.tools.advisor.simulation import Network, simulate
from phalanx.tools.report import tables
from phalanx.tools.report.collect import Result
from phalanx.tools.runner.study import Study
from phalanx.training.phase import Run, amend
from phalanx.training.run_folder import RunFolder
from slow_network import jobs
from slow_network.hosts import Hosts
from slow_network.link import throughput
from slow_network.predictions import probe_command

if TYPE_CHECKING:
    from rich.table import Table

# 101,002 parameters: small, as all hosts share the cores of one machine
RUN = "run(digits(), mlp(hidden=(512, 128)), phases=(phase(gradient(batch=16), chain(reduce(dense())), sgd(lr=0.02)),))"
SHARE = 16  # examples of a worker in a step
QSGD, VOTE = "chain(gather(qsgd(bits=2)), mean())", "chain(vote(qsgd(bits=2), r=3), mean())"
DENSE = "chain(gather(dense()), mean())"
SCHEMES = (
    PLAIN,
    QSGD,
    "chain(gather(terngrad()), mean())",
    "chain(gather(atomo(spectral(), budget=4, vectors=qsgd(bits=4))), mean())",
    VOTE,
)
SERVED = (DENSE, QSGD, VOTE)
# of a core for a message that arrives, and from host to host besides: what fits all-reduces of 2 to 16 hosts on 2 cores
TOUCH_S, ALONE_S = 1e-4, 2e-5
SERVER = "server: "  # before the label of a scheme whose payloads a server takes


def measure(
    workers: Sequence[int],
    rate: str,
    delay_ms: float,
    rounds: int,
    dropped: int,
    base: Path,
    limit_s: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """A line for each number of workers and scheme, with the share of the batch of a worker always the same.

    Args:
        rounds: of each short run.
        dropped: rounds at the start that do not count.
        base: the probe that predictions start from; measured on the first number of hosts if there is no such file.
        limit_s: for a probe, and for all short runs of one job together.
    """
    lines = []
    for n in workers:
        with tempfile.TemporaryDirectory(prefix="phalanx-") as place:
            folder = Path(place)
            say(f"{n} workers at {rate}")
            with Hosts(n, rate, delay_ms) as hosts:
                achieved = throughput(hosts)["bits_per_s"]
                study = fitting(SCHEMES, n, rounds)
                hosts.torchrun(*probe_command(study, folder / "own.json"), logs=folder / "logs", limit_s=limit_s)
                if not base.exists():
                    base.parent.mkdir(parents=True, exist_ok=True)
                    base.write_text((folder / "own.json").read_text())
                results = jobs.conduct(hosts, study, folder / "study", limit_s)
            say(f"{n} workers and a server at {rate}")
            with Hosts(n + 1, rate, delay_ms) as hosts:
                at_server = jobs.conduct(hosts, fitting(SERVED, n, rounds), folder / "served", limit_s, "--server")
            probes = {"base": Probe.read(base), "own": Probe.read(folder / "own.json")}
            about = {"workers": n, "rate": rate, "achieved_bits_per_s": achieved}
            steps = {result.label: step(result, dropped) for result in results}
            for label, parts in steps.items():
                lines.append({**about, "label": label, "measured": parts, **told(probes, label, n, parts, False)})
            for result in at_server:
                twin = steps.get(result.label, steps[PLAIN])
                parts = apart(step(result, dropped), twin)
                known = told(probes, result.label, n, parts, True)
                lines.append({**about, "label": SERVER + result.label, "measured": parts, **known})
            lines[-1]["links"] = {name: probe.to_json()["link"] for name, probe in probes.items()}
    return lines


def fitting(schemes: Sequence[str], n: int, rounds: int) -> Study:
    """Short runs of those schemes that n workers are enough for."""
    run = px.parse(RUN)
    assert isinstance(run, Run)
    # neither a test nor a checkpoint on the way
    settings = {"workers": n, "work.batch": SHARE * n, "rounds": rounds}
    settings |= dict.fromkeys(("evaluate_every", "checkpoint_every"), 10 * rounds)
    for path, value in settings.items():
        run = amend(run, path, value)
    runs = {}
    for text in schemes:
        try:
            check_scheme(px.parse(text), n)
        except TooFewRows:
            continue
        runs[text] = amend(run, "scheme", px.parse(text))
    return Study("run", None, (), runs)


def step(result: Result, dropped: int) -> dict[str, float]:
    """The medians of a run's rounds by part, as rank 0 saw them."""
    rounds = RunFolder(result.path).metrics()[dropped:]
    parts = measured_step(rounds)
    whole = median(line["work_s"] + line["scheme_s"] + line["finish_s"] for line in rounds)
    return {**vars(parts), "step_s": whole, "sent_bytes": result.summary["bytes_per_worker_round"]}


def apart(served_step: dict[str, float], twin: dict[str, float]) -> dict[str, float]:
    """A server's step without the workers' computation, as a server waits for that and for the bytes alike.

    Args:
        twin: the step of as many processes with the same work and code and without a server.
    """
    computed = {"work_s": twin["work_s"], "encode_s": twin["encode_s"]}
    wire = served_step["work_s"] + served_step["wire_s"] - sum(computed.values())
    return {**served_step, **computed, "wire_s": wire}


def told(
    probes: dict[str, Probe], label: str, n: int, parts: dict[str, float], server: bool
) -> dict[str, dict[str, float]]:
    """Seconds of communication by the model and by the simulation, from each probe."""
    by_label: dict[str, dict[str, float]] = {}
    for name, probe in probes.items():
        # a scheme that the first number of workers is too few for was not probed there
        scheme = repr(px.parse(PLAIN if server and label == DENSE else label))
        cost = next((c for c in probe.costs if c.scheme == scheme), None)
        if cost is None or probe.link is None:
            continue
        if server:
            # the row of an all-reduce, sent to a server
            cost = served(replace(cost, scheme=label), probe.parameters)
        by_label[name] = communication(cost, probe.link, n, parts)
    return by_label


def communication(cost: Cost, link: Link, n: int, parts: dict[str, float]) -> dict[str, float]:
    """Seconds on the wire: predicted, simulated on hosts of their own, and on hosts that share this machine's cores."""
    hosts = n + cost.served
    line = Line(ALONE_S, link.line("reduce").bandwidth)
    return {
        "wire_s": predict(cost, 0.0, link, n).wire_s,
        "simulated_s": simulated(cost, link, n, parts["work_s"], Network(np.ones(hosts))),
        "shared_s": simulated(cost, line, n, parts["work_s"], Network(np.ones(hosts), TOUCH_S, os.cpu_count())),
    }


def simulated(cost: Cost, link: Link, n: int, work_s: float, network: Network) -> float:
    """Seconds of a simulated step beyond what is computed in it."""
    whole = simulate(cost, work_s, link, n, network).seconds
    effort = cost.at(n)
    if cost.served:
        return whole - work_s - effort.encode_s - effort.decode_s - effort.rule_s - effort.finish_s
    # the exchange of losses counts towards the work
    losses = network.afresh()
    return whole - simulate(replace(cost, messages=()), work_s, link, n, losses).seconds + effort.pack_s


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Measured and predicted milliseconds of communication."""
    rows = []
    for line in lines:
        took = line["measured"]
        words = [f"{1e3 * took['step_s']:.0f}", f"{1e3 * took['wire_s']:.1f}"]
        for name in ("base", "own"):
            said = line.get(name)
            keys = ("wire_s", "simulated_s", "shared_s") if name == "base" else ("wire_s", "simulated_s")
            words += [f"{1e3 * said[key]:.1f}" if said else "-" for key in keys]
        rows.append([str(line["workers"]), line["label"], tables.size(took["sent_bytes"]), *words])
    head = ("workers", "scheme", "bytes", "step", "wire", "model", "simulation", "shared", "model, own", "simulation")
    return tables.plain_table("milliseconds, medians; predictions of the wire", head, rows)

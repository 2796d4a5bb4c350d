# SPDX-License-Identifier: Apache-2.0
"""Seconds of a federated round: Flower's simulation (Ray) beside this library's and bare local training.

    PHALANX_DATA=... python benchmarks/federated_flower.py --workers 1000 --clients 100 --rounds 4

The rounds and the bare training are those of federated.py. The first round is left out: it compiles, and starts
Flower's actors. Rounds in Flower carry this library's client and strategy, so that all three compute the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import federated
import phalanx as px
from phalanx.training.run_folder import about, write_json
from phalanx.training.trainer import ROUND, Trainer


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000, help="clients that there are (default 1000)")
    parser.add_argument("--clients", type=int, default=100, help="clients of a round (default 100)")
    parser.add_argument("--rounds", type=int, default=4, help="the first one is left out (default 4)")
    parser.add_argument("--actors", type=int, default=os.cpu_count() or 1, help="processes of Ray, with a core each")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    return parser.parse_args(argv)


def seconds_of(lines: list[dict]) -> float:
    """The seconds of a round, without the first one."""
    return median(sum(line[part] for part in ROUND) for line in lines[1:])


def ours(run: px.Run) -> float:
    """Seconds of a round in this library's simulation."""
    lines: list[dict] = []
    px.train(run, listener=lines.append)
    return seconds_of(lines)


def bare(trainer: Trainer, clients: int) -> float:
    """Seconds of the same steps in a plain PyTorch loop, without rows, schemes or results."""
    began = time.perf_counter()
    federated.bare(trainer, range(clients))
    return time.perf_counter() - began


def in_flower(run: px.Run, actors: int) -> tuple[float, float]:
    """Seconds of a round in Flower's simulation, and of all that comes before the first."""
    from flwr.simulation import run_simulation

    from phalanx.distributed.server.membership import Timeouts
    from phalanx.integrations.flower import client_app, server_app

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": actors}}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        # every node is asked for its number once, by actors that start one after the other
        timeouts = Timeouts(join_s=600.0, first_s=600.0)
        server = server_app(run, folder=folder, evaluate=False, poll_s=0.01, timeouts=timeouts)
        run_simulation(server, client_app(run), run.workers, backend_config=resources)
        lines = px.training.RunFolder(Path(folder)).metrics()
    whole = sum(line[part] for line in lines for part in ROUND)
    assert not any(line["excluded"] for line in lines), lines
    return seconds_of(lines), time.perf_counter() - began - whole


def main(argv: list[str] | None = None) -> None:
    """Prints seconds and ratios."""
    given = arguments(argv)
    run = federated.run(given.workers, given.clients, given.rounds)
    ours(replace(run, phases=(replace(run.phases[0], rounds=2),)))  # compiles
    trainer = Trainer(run)
    alone = median(bare(trainer, given.clients) for _ in range(3))
    here = ours(run)
    there, start = in_flower(run, given.actors)
    print(f"{given.clients} of {given.workers} clients, LeNet, {federated.IMAGES} images each, {run.threads} thread(s)")
    print(f"  bare local training       {alone:8.3f} s a round")
    print(f"  this library's simulation {here:8.3f} s a round, {here / alone:.2f} times bare")
    print(
        f"  Flower's simulation       {there:8.3f} s a round, {there / here:.2f} times ours on {given.actors} processes"
    )
    print(f"  before Flower's first and after its last round {start:.1f} s")
    if given.json:
        numbers = {"bare_s": alone, "ours_s": here, "flower_s": there, "flower_around_s": start}
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.json, {"asked": {**vars(given), "json": None}, "measured": numbers, "about": about()})


if __name__ == "__main__":
    main()

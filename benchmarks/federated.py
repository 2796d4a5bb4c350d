# SPDX-License-Identifier: Apache-2.0
"""A federated round of the simulation against the bare local training in it.

python benchmarks/federated.py [--json FILE]

100 of 1,000 clients with 60 MNIST images each train LeNet for one epoch. `bare` is the same number of the same steps in
a loop that does nothing else; the two take turns, so that a busy moment of the machine hits both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional as F

import phalanx as px
from phalanx.training.run_folder import about, write_json
from phalanx.training.trainer import Trainer

CLIENTS, CHOSEN, IMAGES, BATCH = 1000, 100, 60, 20


def run(workers: int = CLIENTS, clients: int = CHOSEN, rounds: int = 1000) -> px.Run:
    """The run whose rounds are timed."""
    local = px.federated.local_training(px.optim.sgd(0.01, momentum=0.9), epochs=1, batch=BATCH)
    data, phase = px.data.mnist(train=IMAGES * workers, test=1000), px.federated.fedavg(local, rounds, clients=clients)
    return px.Run(data, px.models.lenet(), (phase,), workers=workers, partition=px.data.iid(), evaluate_every=1000)


def bare(trainer: Trainer, chosen: Sequence[int]) -> None:
    """The forward and backward passes and steps of a round, on prepared tensors; the weights do not change."""
    run, model = trainer.config, trainer.model
    parts = run.partition.parts(trainer.data, run.workers, run.seed)
    model.train()
    for client in chosen:
        optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9)
        x, y = trainer.data.train(parts[client])
        x = x.to(memory_format=torch.channels_last)
        for piece in torch.arange(len(x)).split(BATCH):
            F.cross_entropy(model(x[piece].contiguous(memory_format=torch.channels_last)), y[piece]).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def train_round(trainer: Trainer) -> None:
    """One round without a test of the model."""
    started = trainer.start_round()
    trainer.finish_round(started, trainer.run_round(started))


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of a round and of the local training in it."""
    trainer = Trainer(run())
    times: dict[str, list[float]] = {"round_s": [], "bare_s": []}
    for index in range(rounds + 1):
        for name, act in (
            ("round_s", lambda: train_round(trainer)),
            ("bare_s", lambda i=index: bare(trainer, range(i, i + CHOSEN))),
        ):
            began = time.perf_counter()
            act()
            times[name].append(time.perf_counter() - began)
    return {name: median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    numbers = measure(asked.rounds)
    numbers["ratio"] = numbers["round_s"] / numbers["bare_s"]
    print(f"{CHOSEN} of {CLIENTS} clients, {IMAGES} images, LeNet, one thread, medians of {asked.rounds} rounds")
    print(
        f"round {numbers['round_s']:.2f} s, bare local training {numbers['bare_s']:.2f} s, {numbers['ratio']:.2f} times"
    )
    if asked.json:
        asked.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.json, {"measured": numbers, "about": about()})


if __name__ == "__main__":
    main()

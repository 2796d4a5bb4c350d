# SPDX-License-Identifier: Apache-2.0
"""How long matching takes: against the published way of computing it, with many clients, and one table of gains.

    python benchmarks/matching.py                        # 16 clients x 256 neurons x 2305 entries, one thread
    python benchmarks/matching.py --clients 4 --neurons 64 --entries 577 --many 16 --json out.json

Both make five sweeps in the same orders over the same noise, in which there is nothing to find. The published way is
written from its formulas: the gains of one neuron after the other, each over temporaries of (L, D); a copy of all
global neurons for every one that opens; a pass over all clients for every one that goes. Tables of gains are
interleaved, and the table shows their medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

import phalanx as px
from phalanx.core.round import make_generator
from phalanx.matching.buffet import BuffetPrior
from phalanx.matching.search import Pool, gain_table
from phalanx.training.run_folder import about
from record import keep

Arrays = list[np.ndarray]


def noise(clients: int, neurons: int, entries: int, square: float = 0.5) -> list[torch.Tensor]:
    """Layers of independent rows of one squared norm: no neuron of one client is one of another's."""
    rng = make_generator("benchmark", clients, neurons, entries)
    rows = torch.randn(clients, neurons, entries, generator=rng)
    return list(rows / rows.norm(dim=2, keepdim=True) * square**0.5)


class Published:
    """The published algorithm with diagonal Gaussians: lists of global neurons, one neuron at a time."""

    def __init__(self, layers: Arrays, gamma: float = 7.0, sigma: float = 1.0, sigma0: float = 1.0) -> None:
        self.layers, self.gamma = layers, gamma
        width = layers[0].shape[1]
        self.mean0 = np.zeros(width)
        self.mean0[-1] = 0.1
        self.precision, self.precision0 = np.full(width, 1 / sigma), np.full(width, 1 / sigma0)
        self.sums, self.precisions = np.zeros((0, width)), np.zeros((0, width))
        self.counts: list[int] = []
        self.assignments: list[list[int]] = [[] for _ in layers]

    def gains(self, j: int) -> np.ndarray:
        """The gains (L_j, L + K) of client j, which is left out."""
        rows, clients = self.layers[j], len(self.layers)
        room = min(len(rows), max(700 - len(self.counts), 1))
        popular = np.minimum(np.array(self.counts), 10)
        prior = np.log(popular / (clients - popular))
        opened = 2 * np.log(self.gamma / clients) - 2 * np.log(np.arange(1, room + 1))
        table = []
        for w in rows:
            with_it = (w * self.precision + self.sums) ** 2 / (self.precision + self.precisions)
            without = self.sums**2 / self.precisions
            new = (w * self.precision + self.mean0 * self.precision0) ** 2 / (self.precision0 + self.precision)
            none = (self.mean0 * self.precision0) ** 2 / self.precision0
            existing = (with_it - without).sum(axis=1) + prior
            table.append(np.concatenate([existing, (new - none).sum() + opened]))
        return np.array(table)

    def place(self, j: int) -> None:
        """Adds client j with the assignment that the gains give."""
        if self.counts:
            _, columns = linear_sum_assignment(-self.gains(j))
        else:
            columns = np.arange(len(self.layers[j]))
        known, places = len(self.counts), []
        for w, column in zip(self.layers[j], columns, strict=True):
            if column < known:
                self.sums[column] += w * self.precision
                self.precisions[column] += self.precision
                self.counts[column] += 1
                places.append(int(column))
            else:
                self.sums = np.vstack([self.sums, self.mean0 * self.precision0 + w * self.precision])
                self.precisions = np.vstack([self.precisions, self.precision0 + self.precision])
                places.append(len(self.counts))
                self.counts.append(1)
        self.assignments[j] = places

    def remove(self, j: int) -> None:
        """Removes client j and the neurons that only it had."""
        gone = []
        for w, i in zip(self.layers[j], self.assignments[j], strict=True):
            self.sums[i] -= w * self.precision
            self.precisions[i] -= self.precision
            self.counts[i] -= 1
            if self.counts[i] == 0:
                gone.append(i)
        self.assignments[j] = []
        for i in sorted(gone, reverse=True):
            self.sums, self.precisions = np.delete(self.sums, i, axis=0), np.delete(self.precisions, i, axis=0)
            del self.counts[i]
            self.assignments = [[a - (a > i) for a in labels] for labels in self.assignments]

    def run(self, sweeps: int = 5, seed: int = 0) -> list[list[int]]:
        """The assignments after so many sweeps, clients in the orders of phalanx.matching.match."""
        for j in sorted(range(len(self.layers)), key=lambda j: -len(self.layers[j])):
            self.place(j)
        for sweep in range(sweeps):
            for j in torch.randperm(len(self.layers), generator=make_generator("matching", seed, sweep)).tolist():
                self.remove(j)
                self.place(j)
        return self.assignments


def clock(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and its result."""
    began = time.perf_counter()
    out = call()
    return time.perf_counter() - began, out


def tables(layers: list[torch.Tensor], repeats: int) -> dict[str, list[float]]:
    """Seconds of the table of gains of the last client, which is out, both ways."""
    old = Published([layer.numpy() for layer in layers])
    rule = px.matching.bbp()
    model = rule.model(layers[0], (layers[0].shape[1] - 1,))
    pool = Pool(layers, model.mean)
    for j in range(len(layers) - 1):
        old.place(j)
        pool.put(j, pool.rows(j), torch.tensor(old.assignments[j]))
    prior, last = BuffetPrior(rule.gamma, rule.popularity, rule.cap, len(layers)), len(layers) - 1
    spent: dict[str, list[float]] = {"published": [], "phalanx": []}
    for _ in range(repeats):
        spent["published"].append(clock(lambda: old.gains(last))[0])
        spent["phalanx"].append(clock(lambda: gain_table(pool, pool.rows(last), model, prior, rule.max_new))[0])
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--neurons", type=int, default=256)
    parser.add_argument("--entries", type=int, default=2305)
    parser.add_argument("--many", type=int, default=128, help="clients of the run that is not compared")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    layers = noise(options.clients, options.neurons, options.entries)
    # once before and once behind the other, so that a busy machine is busy for both
    first, matching = clock(lambda: px.matching.match(layers))
    published, labels = clock(lambda: Published([layer.numpy() for layer in layers]).run())
    second, _ = clock(lambda: px.matching.match(layers))
    spahm, estimated = clock(lambda: px.matching.match(layers, matcher=px.matching.spahm(sweeps=5)))
    spent = {name: statistics.median(times) for name, times in tables(layers, options.repeats).items()}
    crowd = noise(options.many, options.neurons, options.entries)
    many, most = clock(lambda: px.matching.match(crowd))
    size = f"{options.clients} x {options.neurons} x {options.entries}"
    table = Table("what", "seconds", "of the published", "global neurons", "sweeps", title=size)
    old = str(max(max(places) for places in labels) + 1)
    rows = [
        ("published, five sweeps", published, published, old, "5"),
        ("match, first time", first, published, str(len(matching.counts)), str(matching.sweeps)),
        ("match, second time", second, published, str(len(matching.counts)), str(matching.sweeps)),
        ("match, spahm", spahm, published, str(len(estimated.counts)), str(estimated.sweeps)),
        ("one table of gains, published", spent["published"], spent["published"], "", ""),
        ("one table of gains, match", spent["phalanx"], spent["published"], "", ""),
        (f"match, {options.many} clients", many, None, str(len(most.counts)), str(most.sweeps)),
    ]
    result: dict[str, Any] = {"size": size, "threads": options.threads, "about": about(), "seconds": {}}
    for name, seconds, whole, count, sweeps in rows:
        table.add_row(name, f"{seconds:.3f}", "" if whole is None else f"{seconds / whole:.3f}", count, sweeps)
        result["seconds"][name] = seconds
    Console(width=120).print(table)
    keep(options.json, result)


if __name__ == "__main__":
    main()

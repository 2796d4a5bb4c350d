# SPDX-License-Identifier: Apache-2.0
"""How long the server takes for a round: codes and votes against the geometric median and the published decoder.

    python benchmarks/decoding.py                          # 45 x 1,000,000 float32, two threads
    python benchmarks/decoding.py --growth --json out.json # decoding time of 15 rows at 1M to 30M, with the exponent

Everything gets rows of which some are reversed and a hundred times as long, gate included; without a code all differ.
The vote on digests gets what reaches its server, 15 payloads to hash and to average. Payloads lie in memory one behind
the other, as worlds of several processes place them. Repetitions are interleaved; the table shows medians.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import phalanx as px
from phalanx.coding.cyclic import ROW, scales_of
from phalanx.core.layout import Layout
from phalanx.core.packing import ReceiveBuffers, pack, unpack
from phalanx.core.stack import Stack
from phalanx.core.wire_stage import Upload
from phalanx.training.run_folder import about
from record import keep

Call = Callable[[], Any]


def coded(code: Any, n: int, d: int, bad: int) -> torch.Tensor:
    """Rows of n workers of which `bad`, far apart, send -100 times theirs."""
    matrix = code.assign(n).weights_matrix.float()
    units = torch.randn(matrix.shape[1], d, generator=torch.Generator().manual_seed(0))
    rows = matrix @ units
    rows[[i * n // bad for i in range(bad)]] *= -100
    return rows


def decoder(code: Any, rows: torch.Tensor) -> Call:
    """The server's half of a gather and a rule; the payloads have arrived, one behind the other."""
    wire, stack, round = px.gather(px.codecs.dense()), Stack.of(rows), px.Round(world=px.LocalCollective(len(rows)))
    uploads, _ = wire.upload(stack, None, round)
    empty = stack.pick([])
    return lambda: code(wire.receive(uploads, empty, round), None, round)


def cyclic(s: int, n: int, d: int) -> tuple[Call, Call, Call]:
    """Decoding of n rows of which s are false; and of one worker, encoding its units and their float sum."""
    code, units = px.coding.cyclic(s=s), torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    layout, allocation = Layout.flat(d), code.assign(n)
    announced = scales_of(units, layout)
    round, stack = px.Round(world=px.LocalCollective(n), announced=announced), Stack.of_units(units, allocation)
    payloads = code.encode(stack, n, announced)
    for i in range(s):
        payloads[i * n // s][ROW].bitwise_xor_(1)
    uploads, empty = [Upload(payload) for payload in payloads], stack.pick([])
    own = allocation.units[0]
    mine = Stack(units[: len(own)], layout, ((0,),) * len(own), torch.ones(len(own)).double(), units=own)
    return (
        lambda: code.receive(uploads, empty, round),
        lambda: code.encode(mine, n, announced),
        lambda: mine.rows.sum(dim=0),
    )


def digest_vote(rows: torch.Tensor, r: int) -> Call:
    """The server's half of a vote on digests, and the mean of the votes; the payloads have arrived."""
    n = len(rows)
    wire, mean = px.coding.vote(px.codecs.dense(), r=r), px.aggregators.mean()
    stack = Stack.of(rows)
    uploads, _ = wire.upload(stack, None, px.Round(world=px.LocalCollective(n)))
    first = [upload.now for upload in uploads]

    @cache
    def delivered(workers: tuple[int, ...]) -> list[Any]:
        """The payloads of these workers as a group of processes delivers them."""
        buffers = ReceiveBuffers(len(workers), 2 * rows[0].nbytes)
        packed = (pack(uploads[worker].on_request or {}) for worker in workers)
        return [unpack(message, partial(buffers.buffer_for, i)) for i, message in enumerate(packed)]

    class Arrived(px.LocalCollective):
        def gather(self, payloads: Any, limit_bytes: int) -> Any:
            return first

        def fetch(self, payloads: Any, workers: Any, limit_bytes: int) -> Any:
            return delivered(tuple(workers))

    round = px.Round(world=Arrived(n))
    empty = stack.pick([])

    def call() -> Any:
        return mean(wire.receive([Upload(None)] * 0, empty, round), None, round)

    return call


def published(rows: torch.Tensor, r: int, tensors: int = 60) -> Call:
    """Boyer-Moore for each tensor by np.array_equal, then the mean: the published repetition decoder."""
    pieces = [np.array_split(row, tensors) for row in rows.numpy()]

    def majority(votes: list[np.ndarray]) -> np.ndarray:
        candidate, count = votes[0], 0
        for vote in votes:
            if count == 0:
                candidate, count = vote, 1
            else:
                count += 1 if np.array_equal(candidate, vote) else -1
        return candidate

    def call() -> list[np.ndarray]:
        groups = [pieces[start : start + r] for start in range(0, len(pieces), r)]
        votes = [[majority([worker[t] for worker in group]) for group in groups] for t in range(tensors)]
        return [np.mean(vote, axis=0) for vote in votes]

    return call


def calls(n: int, d: int) -> dict[str, Call]:
    """The calls that are timed."""
    vote, by_name = px.chain(px.coding.group_vote(r=3), px.aggregators.mean()), {}
    rows = coded(vote, n, d, 5)
    apart = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    apart[:: n // 5] *= -100
    by_name["plain mean of all rows"] = lambda: apart.mean(dim=0)
    by_name["geometric median, converged"] = decoder(px.aggregators.geometric_median(), apart)
    by_name["digest vote r=3, mean"] = digest_vote(rows, 3)
    by_name["rows compared r=3, mean"] = decoder(vote, rows)
    by_name["published repetition decoder r=3"] = published(rows, 3)
    for s in (1, 3, 5):
        by_name[f"cyclic s={s}"], *worker = cyclic(s, n, d)
        by_name[f"a worker's encoding s={s}"], by_name[f"float sum of its units s={s}"] = worker
    return by_name


def timed(by_name: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, interleaved, after one that warms up."""
    for call in by_name.values():
        call()
    spent: dict[str, list[float]] = {name: [] for name in by_name}
    for _ in range(repeats):
        for name, call in by_name.items():
            began = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - began)
    return spent


def growth(n: int, sizes: list[int], repeats: int) -> dict[str, Any]:
    """Medians by row length, and the exponent of the best power law."""
    seconds: dict[str, dict[int, float]] = {}
    for d in sizes:
        rows = coded(px.coding.group_vote(r=3), n, d, 2)
        by_name = {
            "digest vote r=3, mean": digest_vote(rows, 3),
            "cyclic s=2": cyclic(2, n, d)[0],
        }
        for name, spent in timed(by_name, repeats).items():
            seconds.setdefault(name, {})[d] = statistics.median(spent)
    out = {}
    for name, by_size in seconds.items():
        x, y = [math.log(d) for d in by_size], [math.log(t) for t in by_size.values()]
        slope = statistics.linear_regression(x, y).slope
        out[name] = {"seconds": {str(d): t for d, t in by_size.items()}, "exponent": slope}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=45)
    parser.add_argument("--d", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--growth", action="store_true", help="decoding time against row length, 15 rows")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"threads": options.threads, "repeats": options.repeats, "about": about()}
    if options.growth:
        result |= {"workers": 15, "growth": growth(15, [10**6, 3 * 10**6, 10**7, 3 * 10**7], min(options.repeats, 5))}
        for name, line in result["growth"].items():
            times = ", ".join(f"{int(d):,}: {1000 * t:.1f} ms" for d, t in line["seconds"].items())
            print(f"{name}: {times}; exponent {line['exponent']:.2f}")
    else:
        spent = timed(calls(options.workers, options.d), options.repeats)
        middle = {name: statistics.median(times) for name, times in spent.items()}
        median, mean = middle["geometric median, converged"], middle["plain mean of all rows"]
        title = f"{options.workers} x {options.d:,}"
        table = Table("decoder", "ms", "least ms", "plain means", "times as fast as the geometric median", title=title)
        for name, seconds in middle.items():
            table.add_row(
                name,
                f"{1000 * seconds:.1f}",
                f"{1000 * min(spent[name]):.1f}",
                f"{seconds / mean:.1f}",
                f"{median / seconds:.1f}",
            )
        Console(width=120).print(table)
        result |= {"workers": options.workers, "d": options.d, "milliseconds": {k: 1000 * v for k, v in middle.items()}}
        result["least_milliseconds"] = {k: 1000 * min(v) for k, v in spent.items()}
        result["faster_than_geometric_median"] = {k: median / v for k, v in middle.items()}
    keep(options.json, result)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Under torchrun: the exchange of one row alone, by gloo's all-reduce and by schemes, as JSON."""

import json
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

import phalanx as px
from phalanx.distributed.job import hard_exit
from phalanx.distributed.process_group import ProcessGroupCollective

ALL_REDUCE = "all-reduce"


def line_bytes() -> int:
    """What this host has sent so far on all cards but the loopback."""
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines if line.split(":")[0].strip() != "lo")


def memory_bytes() -> int:
    """The most memory that this process had since the last reset."""
    words = Path("/proc/self/status").read_text().split()
    return 1024 * int(words[words.index("VmHWM:") + 1])


def one(call: Callable[[], object]) -> list[float]:
    """Seconds until the slowest rank is through; CPU seconds, bytes sent and memory of the rank that has most."""
    # the kernel takes the present memory for the most so far
    Path("/proc/self/clear_refs").write_text("5")
    dist.barrier()
    sent, before, cpu, began = line_bytes(), memory_bytes(), time.process_time(), time.perf_counter()
    call()
    spent = [
        time.perf_counter() - began,
        time.process_time() - cpu,
        line_bytes() - sent,
        max(0, memory_bytes() - before),
    ]
    numbers = torch.tensor(spent, dtype=torch.float64)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    return numbers.tolist()


def scheme_call(text: str, row: torch.Tensor, layout: px.Layout) -> Callable[[int], object]:
    """A function of the number of the round that runs the scheme on this rank's row."""
    stage, world, memory = px.parse(text), ProcessGroupCollective(), dict[str, Any]()

    def call(index: int) -> object:
        weights = torch.ones(1, dtype=torch.float64)
        stack = px.Stack(row, layout, (world.local_workers,), weights)
        result, memory["state"] = stage(stack, memory.get("state"), px.Round(index, world=world))
        return result.rows

    return call


def main() -> None:
    """Command line: OUT ROUNDS ENTRIES SCHEMES..."""
    out, rounds, entries, schemes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    # as of a network with layers of several sizes
    sizes = [entries // 2, entries // 3, entries - entries // 2 - entries // 3]
    layout = px.Layout(tuple("abc"), tuple(torch.Size([size]) for size in sizes))
    row = torch.randn(1, entries, generator=torch.Generator().manual_seed(dist.get_rank()))
    buffer = row.clone()
    calls: dict[str, Callable[[int], object]] = {ALL_REDUCE: lambda _: dist.all_reduce(buffer)}
    calls |= {text: scheme_call(text, row, layout) for text in schemes}
    taken: dict[str, list[list[float]]] = {name: [] for name in calls}
    for index in range(rounds + 1):
        for name, call in calls.items():
            buffer.copy_(row)
            taken[name].append(one(lambda call=call, index=index: call(index)))
    columns = ("seconds", "cpu_s", "line_bytes", "memory_bytes")
    # the first round compiles, and fills pages
    lines = [
        {"scheme": name, **dict(zip(columns, map(median, zip(*numbers[1:], strict=True)), strict=True))}
        for name, numbers in taken.items()
    ]
    if dist.get_rank() == 0:
        out.write_text(json.dumps(lines))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    hard_exit()

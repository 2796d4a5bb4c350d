# SPDX-License-Identifier: Apache-2.0
"""A round of a cluster on one machine: the workers one after the other, then the server, each of them timed."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.kernels.columns import PIECE
from phalanx.core.allocation import Allocation
from phalanx.core.attack import Attack
from phalanx.core.codec import Gather
from phalanx.core.layout import Layout
from phalanx.core.payload import payload_bytes
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Chain
from phalanx.core.wire_stage import Upload, WireStage, worker_half
from phalanx.core.world import LocalCollective
from phalanx.training.client_work import ClientWork
from phalanx.training.context import WorkerContext

X = TypeVar("X")


def timed(call: Callable[[], X], repeats: int) -> tuple[X, float]:
    """Repeats a call; returns the result of the last one and the median of the seconds."""
    made, spent = [], []
    for _ in range(repeats):
        # what the one before made goes first, as it may be large
        made.clear()
        began = time.perf_counter()
        made.append(call())
        spent.append(time.perf_counter() - began)
    return made[0], median(spent)


@contextmanager
def large_rows(n: int, d: int, memory_bytes: int) -> Iterator[Tensor]:
    """Uninitialized float32 rows (n, d), in memory or in a nameless file that exists until the context ends.

    The file lies in the folder for temporary files, which the environment variable TMPDIR sets. Where that is a disk in
    memory nothing is won.

    Args:
        memory_bytes: up to so many are in memory.
    Raises:
        ValueError: the disk has too little room.
    """
    size = 4 * n * d
    if size <= memory_bytes:
        yield torch.empty(n, d)
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{n} rows of {d:,} float32 take {size / 1e9:.3g} GB, more than memory_bytes={memory_bytes}, and {folder} "
            f"has {free / 1e9:.3g} GB left; free some, set TMPDIR to a larger disk, or raise memory_bytes"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        # the blocks now: a disk that fills up later would end the process without a word
        os.posix_fallocate(file.fileno(), 0, size)
        yield torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(n, d)))


def compute(
    work: ClientWork, site: WorkerContext, allocation: Allocation, samples: Sequence[Tensor], rows: Tensor
) -> list[float]:
    """Writes the row of every worker, (n, d), where each has one unit; returns the seconds of each unit.

    A unit that several workers have is computed once.
    """
    scratch = torch.zeros(site.layout.d)
    work.compute_row(site, 0, samples[0], scratch, {})  # the first one of a shape chooses its kernels
    spent = []
    for unit, mine in enumerate(samples):
        scratch.zero_()
        _, seconds = timed(lambda unit=unit, mine=mine: work.compute_row(site, unit, mine, scratch, {}), 1)
        spent.append(seconds)
        for worker in range(len(rows)):
            if allocation.unit(worker) == unit:
                rows[worker] = scratch
    return spent


def worker_seconds(allocation: Allocation, spent: Sequence[float]) -> float:
    """The median seconds of a worker's computation, from the seconds of each unit."""
    return median(sum(spent[unit] for unit in units) for units in allocation.units)


def falsify(attack: Attack, rows: Tensor, layout: Layout, liars: Collection[int]) -> None:
    """Replaces the rows of these workers by what they send under an attack, one by one."""
    for worker in sorted(liars):
        world = LocalCollective(len(rows), local_workers=(worker,))
        own = Stack.of(rows[worker : worker + 1], layout, ids=(worker,))
        forged, _ = attack(own, None, Round(world=world, byzantine=frozenset(liars)))
        rows[worker] = forged.rows[0]


def encode_seconds(scheme: Chain, rows: Tensor, layout: Layout, repeats: int) -> float:
    """Seconds from the row of the first of n workers to its upload."""
    one, round = Stack.of(rows[:1], layout), Round(world=LocalCollective(len(rows), local_workers=(0,)))
    worker_half(scheme, one, None, round)  # imports what hashes
    _, seconds = timed(lambda: worker_half(scheme, one, None, round), repeats)
    return seconds


@dataclass(frozen=True)
class Served:
    """The result of a round at the server.

    Args:
        row: (d,).
        bytes_in: of all payloads that reached it.
        trips: messages that wait for one another, from a worker to the server or back.
    """

    row: Tensor
    bytes_in: int
    trips: int
    decode_s: float


def serve(scheme: Chain, rows: Tensor, layout: Layout, repeats: int) -> Served:
    """Runs the server's half of `chain(wire, rule, ..)` on the rows (n, d) of all workers, which are in its memory.

    A `gather` copies them out of their payloads. That copy is neither made nor timed: it would be a second one of all
    rows. The gate is there, as every rule has one.
    """
    wire, *rules = scheme.stages
    assert isinstance(wire, WireStage)
    round, stack = Round(world=LocalCollective(len(rows))), Stack.of(rows, layout)
    uploads, _ = wire.upload(stack, None, round.child(0))
    gathers = isinstance(wire, Gather)

    def call() -> Stack:
        result = replace(stack, received=True) if gathers else wire.receive(uploads, stack.pick([]), round.child(0))
        for i, rule in enumerate(rules, 1):
            result, _ = rule(result, None, round.child(i))
        return result

    result, seconds = timed(call, repeats)
    came = sum(note.value for note in result.notes if note.kind == "bytes")
    # who votes on digests asks for payloads: digests, the question, the answers
    return Served(result.rows[0], _sent(uploads) if gathers else int(came), 1 if gathers else 3, seconds)


def _sent(uploads: Sequence[Upload]) -> int:
    return sum(payload_bytes(upload.now) for upload in uploads if upload.now is not None)


def mean_of(rows: Tensor, picks: Sequence[int]) -> Tensor:
    """The plain mean of some rows, added up in float64. Shapes: (n, d) -> (d,)."""
    mean, chosen = rows.new_empty(rows.shape[1]), list(picks)
    for start in range(0, rows.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        mean[piece] = rows[:, piece][chosen].mean(dim=0, dtype=torch.float64)
    return mean


def relative_error(row: Tensor, truth: Tensor) -> float:
    """|row - truth| / |truth|, Euclidean."""
    apart, size = (float(torch.linalg.vector_norm(x, dtype=torch.float64)) for x in (row - truth, truth))
    return apart / size if size else float(apart > 0)

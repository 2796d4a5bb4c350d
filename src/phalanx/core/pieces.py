# SPDX-License-Identifier: Apache-2.0
"""A row's tensors are cut into buckets, and the buckets into pieces, which several threads process.

The cut is part of the wire format: it depends on the layout, never on the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.columns import Block
from phalanx.core.layout import Layout
from phalanx.core.parallel import parallel_map
from phalanx.core.round import Rng

BLOCK = 512  # entries whose codes are packed together
PIECE = 1 << 18  # entries that one thread takes at a time; a megabyte stays in a second-level cache
_SERIAL = 1 << 17  # shorter rows are not worth a second thread
_SHARES = 4  # runs of pieces for each thread, so that all threads end at about the same time

T = TypeVar("T")


class Piece(NamedTuple):
    """A run of whole buckets, or a part of one long bucket, of one tensor."""

    tensor: int
    start: int  # in the row
    stop: int
    offset: int  # of the first entry in its tensor; its random numbers are counted from there
    width: int  # entries of a bucket
    buckets: slice  # among the buckets of the row
    whole: bool
    body: slice  # among the packed bytes of the row


class Cut(NamedTuple):
    """All pieces of a row, the buckets that are longer than a piece, and the numbers of buckets and packed bytes."""

    pieces: tuple[Piece, ...]
    long: tuple[tuple[slice, int], ...]  # (entries in the row, index of the bucket)
    num_buckets: int
    num_bytes: int

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each piece."""
        return [piece.stop - piece.start for piece in self.pieces]


@lru_cache(maxsize=64)
def cut(layout: Layout, bucket: int | None, bits: int) -> Cut:
    """The pieces of a row.

    Args:
        bucket: entries in a bucket; None makes each tensor one bucket.
        bits: bits of an entry's code.
    """
    pieces: list[Piece] = []
    long: list[tuple[slice, int]] = []
    row = buckets = byte = 0
    for tensor, size in enumerate(layout.sizes):
        width = max(1, min(bucket or size, size))
        step = width if width > PIECE else PIECE // width * width
        for offset in range(0, size, step):
            count = min(step, size - offset)
            own_buckets = slice(buckets, buckets + -(-count // width))
            buckets = own_buckets.stop
            if width <= PIECE:
                bounds = [(offset, offset + count)]
            else:
                bounds = [(s, min(s + PIECE, offset + count)) for s in range(offset, offset + count, PIECE)]
                long.append((slice(row + offset, row + offset + count), own_buckets.start))
            for start, stop in bounds:
                num_bytes = _packed_bytes(stop - start, width, bits)
                body = slice(byte, byte + num_bytes)
                pieces.append(Piece(tensor, row + start, row + stop, start, width, own_buckets, width <= PIECE, body))
                byte = body.stop
        row += size
    return Cut(tuple(pieces), tuple(long), buckets, byte)


def _packed_bytes(count: int, width: int, bits: int) -> int:
    full, rest = divmod(count, width)
    return full * _bucket_bytes(width, bits) + _bucket_bytes(rest, bits)


def _bucket_bytes(count: int, bits: int) -> int:
    full, rest = divmod(count, BLOCK)
    return sum(full * (BLOCK * p // 8) + -(-rest * p // 8) for p in (8, 4, 2, 1) if bits & p)


def first_pieces(plan: Cut) -> dict[int, Piece]:
    """The first piece of each tensor that has entries."""
    return {piece.tensor: piece for piece in reversed(plan.pieces)}


def body_of(first: Piece, block: Block, bits: int) -> slice:
    """The packed bytes of a block among those of the row; the block begins and ends between blocks of codes.

    Args:
        first: the first piece of the block's tensor.
        bits: bits of an entry's code.
    """
    ends = (block.offset, block.offset + block.stop - block.start)
    start, stop = (first.body.start + _packed_bytes(end, first.width, bits) for end in ends)
    return slice(start, stop)


def spread(work: Callable[[Any], T], items: Sequence[Any], sizes: Sequence[int]) -> list[T]:
    """Calls `work` on every item, on as many threads as torch uses where the sizes are worth it; keeps the order.

    A thread takes neighbouring items: two threads that write to one new page at a time would both wait for it.
    """
    threads, total = min(torch.get_num_threads(), len(items)), sum(sizes)
    if threads <= 1 or total <= _SERIAL:
        return [work(item) for item in items]
    ends = np.cumsum(sizes)
    cuts = np.searchsorted(ends, np.linspace(0, total, _SHARES * threads + 1)[1:-1], side="right").tolist()
    runs = [items[start:stop] for start, stop in pairwise([0, *cuts, len(items)])]
    return [done for run in parallel_map(lambda run: [work(item) for item in run], runs) for done in run]


def seed_of(rng: Rng) -> int:
    """A seed of 63 bits from a worker's random generator."""
    return int(torch.randint(2**63 - 1, (), generator=rng()))


def keys(layout: Layout, rng: Rng) -> list[np.uint64]:
    """The key of each tensor's random numbers, from one draw of a seed."""
    return keys_of(layout, seed_of(rng))


def keys_of(layout: Layout, seed: int) -> list[np.uint64]:
    """A key for each tensor from a seed and the tensor's name: the same however the model is cut into rows."""
    salt = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(name.encode(), digest_size=8, key=salt).digest() for name in layout.names)
    return [np.uint64(int.from_bytes(digest, "little")) for digest in digests]


def counts(layout: Layout, ratio: float) -> list[int]:
    """The number of entries of each tensor that a ratio keeps: rounded, and at least one of a tensor that has any."""
    return [min(size, max(1, round(ratio * size))) for size in layout.sizes]


def offsets(sizes: Sequence[int]) -> list[int]:
    """The start of each run when runs of these sizes follow each other."""
    return [0, *accumulate(sizes)][: len(sizes)]


def float_array(row: Tensor) -> np.ndarray:
    """The row (d,) as contiguous float32 on the CPU, without a copy where it is that already."""
    return row.detach().to("cpu", torch.float32).contiguous().numpy()


def blank(d: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """A row of zeros (d,).

    On a CPU numpy allocates it: numpy asks for large pages, torch does not, and new pages are most of decoding's cost.
    """
    if torch.device(device).type != "cpu" or not d:
        return torch.zeros(d, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(d * dtype.itemsize, np.uint8)).view(dtype)

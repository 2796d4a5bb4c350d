# SPDX-License-Identifier: Apache-2.0
"""Means of order statistics in each column, by compiled sorting networks on a CPU and by torch's sort elsewhere.

A sorting network is a fixed list of comparators (i, j), i < j. Each puts the smaller of two values on wire i and the
larger on wire j, so the network sorts all columns of a block at once, without a branch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.kernels.columns import PIECE, for_each_piece
from phalanx.core.precision import accumulation_dtype


def middle_mean(rows: Tensor, lo: int, hi: int, picks: Sequence[int] | None = None) -> Tensor:
    """The mean of each column's order statistics lo .. hi-1. Shapes: (n, d) -> (d,).

    The median is the mean of one or two order statistics.

    Args:
        picks: positions of the rows to use; all when None.
    """
    chosen = _positions(rows, picks)
    if rows.device.type != "cpu":
        return _sorted(rows, chosen, lambda values: values[lo:hi].mean(dim=0))
    from phalanx.aggregators.kernels import sweeps

    steps, slots = schedule(len(chosen), lo, hi, summed=True)
    return _swept(rows, lambda flat, stride, out: sweeps.middle_mean(flat, stride, chosen, steps, slots, lo, hi, out))


def median(rows: Tensor) -> Tensor:
    """The median of each column, for even n the mean of the two middle values. Shapes: (n, d) -> (d,)."""
    n = len(rows)
    return middle_mean(rows, (n - 1) // 2, n // 2 + 1)


def central_mean(rows: Tensor, keep: int, picks: Sequence[int] | None = None) -> Tensor:
    """The mean of the `keep` values of each column closest to its median, the lower one in a tie. (n, d) -> (d,)."""
    chosen = _positions(rows, picks)
    if rows.device.type != "cpu":
        return _sorted(rows, chosen, lambda values: _central(values, keep))
    from phalanx.aggregators.kernels import sweeps

    steps, slots = schedule(len(chosen), 0, len(chosen), summed=False)
    return _swept(rows, lambda flat, stride, out: sweeps.central_mean(flat, stride, chosen, steps, slots, keep, out))


def _positions(rows: Tensor, picks: Sequence[int] | None) -> np.ndarray:
    return np.asarray(range(len(rows)) if picks is None else picks, dtype=np.int64)


def _swept(rows: Tensor, sweep: Callable[[np.ndarray, int, np.ndarray], None]) -> Tensor:
    floats = accumulation_dtype(rows.dtype)
    result = torch.empty(rows.shape[1], dtype=floats)

    def work(start: int, stop: int) -> None:
        part = rows[:, start:stop]
        if part.dtype != floats or part.stride(1) != 1:
            part = part.to(floats).contiguous()
        flat = part.as_strided(((len(part) - 1) * part.stride(0) + stop - start,), (1,))
        sweep(flat.numpy(), part.stride(0), result[start:stop].numpy())

    for_each_piece(work, rows.shape[1])
    return result.to(rows.dtype)


def _sorted(rows: Tensor, chosen: np.ndarray, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    floats = accumulation_dtype(rows.dtype)
    index = torch.as_tensor(chosen, device=rows.device)
    result = rows.new_empty(rows.shape[1])
    step = 8 * PIECE
    for start in range(0, rows.shape[1], step):
        part = rows[:, start : start + step].index_select(0, index).to(floats)
        result[start : start + step] = reduce(part.sort(dim=0).values)
    return result


def _central(values: Tensor, keep: int) -> Tensor:
    m = len(values)
    median = (values[(m - 1) // 2] + values[m // 2]) * 0.5
    # the window moves on while the value behind it is closer to the median than its first value
    moves = values[keep:] - median < median - values[: m - keep]
    start = moves.sum(dim=0)
    rank = torch.arange(m, device=values.device).reshape(-1, 1)
    in_window = (rank >= start) & (rank < start + keep)
    return values.where(in_window, 0).sum(dim=0) / keep


BOTH, LOW, HIGH = 0, 1, 2  # which outputs of a comparator are still read
_UNREAD, _SUMMED, _READ = 0, 1, 2


@lru_cache(maxsize=256)
def network(n: int, lo: int, hi: int, summed: bool) -> np.ndarray:
    """The comparators (i, j, outputs) that bring order statistics lo .. hi-1 of n values to the wires lo .. hi-1.

    Going backwards from the wanted wires, it drops each comparator whose outputs are not read, and the half of one that
    is read on one side only.

    Args:
        summed: only the sum of the wanted wires is read, so their order does not matter.
    """
    wires = [_UNREAD] * n
    wires[lo:hi] = [_SUMMED if summed else _READ] * (hi - lo)
    needed = []
    for i, j in reversed(_merge_exchange(n)):
        pair = (wires[i], wires[j])
        # a + b = min + max: exchanging two summands changes nothing
        if pair in ((_UNREAD, _UNREAD), (_SUMMED, _SUMMED)):
            continue
        needed.append((i, j, BOTH if all(pair) else LOW if pair[0] else HIGH))
        wires[i] = wires[j] = _READ
    comparators = np.array(needed[::-1], dtype=np.int64).reshape(-1, 3)
    comparators.setflags(write=False)
    return comparators


@lru_cache(maxsize=256)
def schedule(n: int, lo: int, hi: int, summed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The same network for a buffer of n + 2 slots, where no comparator writes to a slot that it reads.

    Wire i begins in slot i. An output that is not read has a slot, to which nothing is written.

    Returns:
        The steps (left, right, low, high, outputs), whose first four are slots, and the slot of each wire at the end.
    """
    slots, free = list(range(n)), [n, n + 1]
    steps = []
    for i, j, outputs in network(n, lo, hi, summed).tolist():
        left, right = slots[i], slots[j]
        low, high = free.pop(), free.pop()
        steps.append((left, right, low, high, outputs))
        slots[i], slots[j] = low, high
        free += [left, right]
    arrays = np.array(steps, dtype=np.int64).reshape(-1, 5), np.array(slots, dtype=np.int64)
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _merge_exchange(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort for any n.

    Source: Knuth, The Art of Computer Programming 3, 1998, section 5.2.2, Algorithm M. As published.
    """
    pairs = []
    top = 1 << max(n - 1, 0).bit_length() >> 1
    p = top
    while p:
        q, r, d = top, 0, p
        while True:
            pairs += [(i, i + d) for i in range(n - d) if i & p == r]
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs

# SPDX-License-Identifier: Apache-2.0
"""The compiled loops over columns; importing this file imports Numba.

Each loop copies a block of columns into a buffer that stays in cache, runs a sorting network over the rows of the
block, and adds up what is wanted. The steps of a network come as an array, so that another n needs no new compilation.
No loop takes a lock or starts a thread; the caller gives pieces of columns to threads.

A comparator writes to rows of the block that it does not read. In place, LLVM leaves out the store of a smaller value
that is where it belongs already, so it makes stores under a mask, which are slow on many processors with AVX2.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 128  # columns: 45 rows of float32 take 23 KB, half of a first-level cache


@njit(nogil=True, cache=True, error_model="numpy")
def _load(flat, stride, picks, start, width, block):
    for i in range(len(picks)):
        offset = picks[i] * stride + start
        # through a slice, as numba checks an index that may be negative at every value
        source = flat[offset : offset + width]
        for t in range(width):
            block[i, t] = source[t]


@njit(nogil=True, cache=True, error_model="numpy")
def _sort(block, steps):
    for c in range(len(steps)):
        i, j, to_low, to_high, outputs = steps[c]
        left, right, low, high = block[i], block[j], block[to_low], block[to_high]
        if outputs == 0:
            for t in range(_BLOCK):
                a, b = left[t], right[t]
                low[t] = a if a < b else b
                high[t] = b if a < b else a
        elif outputs == 1:
            for t in range(_BLOCK):
                a, b = left[t], right[t]
                low[t] = a if a < b else b
        else:
            for t in range(_BLOCK):
                a, b = left[t], right[t]
                high[t] = b if a < b else a


@njit(nogil=True, cache=True, error_model="numpy")
def middle_mean(flat, stride, picks, steps, slots, lo, hi, out):
    """out[c] = mean of the order statistics lo .. hi-1 of flat[picks * stride + c].

    `steps` leaves order statistic i in row slots[i] of the block.
    """
    block = np.zeros((len(picks) + 2, _BLOCK), flat.dtype)
    total = np.zeros(_BLOCK, np.float64)
    for start in range(0, len(out), _BLOCK):
        width = min(_BLOCK, len(out) - start)
        _load(flat, stride, picks, start, width, block)
        _sort(block, steps)
        total[:] = 0.0
        for i in range(lo, hi):
            values = block[slots[i]]
            for t in range(_BLOCK):
                total[t] += values[t]
        for t in range(width):
            out[start + t] = total[t] / (hi - lo)


@njit(nogil=True, cache=True, error_model="numpy")
def central_mean(flat, stride, picks, steps, slots, keep, out):
    """out[c] = mean of the `keep` values of flat[picks * stride + c] that are closest to their median.

    In sorted order these values are a window. Its start moves from s to s + 1 exactly while the value behind the window
    is closer to the median than its first value, so two comparisons tell whether value j is inside.
    """
    m = len(picks)
    spare = m - keep
    block = np.zeros((m + 2, _BLOCK), flat.dtype)
    total = np.zeros(_BLOCK, np.float64)
    median = np.zeros(_BLOCK, flat.dtype)
    half = flat.dtype.type(0.5)
    for start in range(0, len(out), _BLOCK):
        width = min(_BLOCK, len(out) - start)
        _load(flat, stride, picks, start, width, block)
        _sort(block, steps)
        below, above = block[slots[(m - 1) // 2]], block[slots[m // 2]]
        for t in range(_BLOCK):
            median[t] = (below[t] + above[t]) * half
        total[:] = 0.0
        for j in range(m):
            values = block[slots[j]]
            # the value that enters the window when this one leaves it, and the one that leaves when this one enters
            follower, leader = block[slots[min(j + keep, m - 1)]], block[slots[max(j - keep, 0)]]
            if j < spare and j < keep:
                for t in range(_BLOCK):
                    passed = follower[t] - median[t] < median[t] - values[t]
                    total[t] += 0.0 if passed else values[t]
            elif j < spare:
                for t in range(_BLOCK):
                    passed = follower[t] - median[t] < median[t] - values[t]
                    reached = values[t] - median[t] < median[t] - leader[t]
                    total[t] += values[t] if reached and not passed else 0.0
            elif j < keep:
                for t in range(_BLOCK):
                    total[t] += values[t]
            else:
                for t in range(_BLOCK):
                    reached = values[t] - median[t] < median[t] - leader[t]
                    total[t] += values[t] if reached else 0.0
        for t in range(width):
            out[start + t] = total[t] / keep


@njit(nogil=True, cache=True, error_model="numpy")
def iterated_choice(squared, order, f, theta):
    """Positions of theta rows; each is Krum's choice among the rows that earlier choices left.

    order[i] holds the other rows from the nearest to the farthest.
    """
    n = len(squared)
    left = np.ones(n, np.bool_)
    chosen = np.empty(theta, np.int64)
    for step in range(theta):
        neighbours = max(1, n - step - f - 2)
        best, least = -1, np.inf
        for i in range(n):
            if not left[i]:
                continue
            score, num_added = 0.0, 0
            for j in order[i]:
                if left[j]:
                    score += squared[i, j]
                    num_added += 1
                    if num_added == neighbours:
                        break
            if best < 0 or score < least:
                best, least = i, score
        left[best] = False
        chosen[step] = best
    return chosen

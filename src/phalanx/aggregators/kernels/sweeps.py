# SPDX-License-Identifier: Apache-2.0
"""The compiled loops over columns; importing this file imports Numba.

Each loop copies a block of columns into a buffer that stays in cache, runs a sorting network over the rows of the
block, and adds up what is wanted. Comparators come as an array, so that another n needs no new compilation. No loop
takes a lock or starts a thread; the caller gives pieces of columns to threads.

Floating-point numbers are sorted as integers of the same order: their bits, of which all but the sign are flipped where
the number is negative. The smaller of two integers is one instruction everywhere (vpminsd, smin). Of a comparison of
floats the compiler makes stores under a mask, since the smaller value may be in its place already, and those are slow
on processors without AVX-512. So -0.0 counts as smaller than 0.0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 128  # columns: 45 rows of float32 take 23 KB, half of a first-level cache


@njit(nogil=True, cache=True, error_model="numpy")
def _flip(source, row):
    """row = bits of floats as integers of the same order, and back."""
    # the largest integer; a constant of the type, as shifts would be done in 64 bits
    most = np.int64(0x7FFFFFFF) if row.itemsize == 4 else np.int64(0x7FFFFFFFFFFFFFFF)
    for t in range(len(source)):
        row[t] = source[t] ^ (most & -(source[t] < 0))


@njit(nogil=True, cache=True, error_model="numpy")
def _load(bits, stride, picks, start, width, block):
    for i in range(len(picks)):
        offset = picks[i] * stride + start
        # through a slice, as numba checks an index that may be negative at every value
        _flip(bits[offset : offset + width], block[i])


@njit(nogil=True, cache=True, error_model="numpy")
def _sort(block, comparators):
    for c in range(len(comparators)):
        i, j, outputs = comparators[c]
        low, high = block[i], block[j]
        if outputs == 0:
            for t in range(_BLOCK):
                a, b = low[t], high[t]
                low[t] = a if a < b else b
                high[t] = b if a < b else a
        elif outputs == 1:
            for t in range(_BLOCK):
                a, b = low[t], high[t]
                low[t] = a if a < b else b
        else:
            for t in range(_BLOCK):
                a, b = low[t], high[t]
                high[t] = b if a < b else a


@njit(nogil=True, cache=True, error_model="numpy")
def middle_mean(bits, stride, picks, comparators, lo, hi, out):
    """out[c] = mean of the order statistics lo .. hi-1 of the floats whose bits are bits[picks * stride + c]."""
    block = np.zeros((len(picks), _BLOCK), bits.dtype)
    values = block.view(out.dtype)
    total = np.zeros(_BLOCK, np.float64)
    for start in range(0, len(out), _BLOCK):
        width = min(_BLOCK, len(out) - start)
        _load(bits, stride, picks, start, width, block)
        _sort(block, comparators)
        total[:] = 0.0
        for i in range(lo, hi):
            _flip(block[i], block[i])
            for t in range(_BLOCK):
                total[t] += values[i, t]
        for t in range(width):
            out[start + t] = total[t] / (hi - lo)


@njit(nogil=True, cache=True, error_model="numpy")
def central_mean(bits, stride, picks, comparators, keep, out):
    """out[c] = mean of the `keep` floats closest to their median, of those with the bits bits[picks * stride + c].

    In sorted order these values are a window. Its start moves from s to s + 1 exactly while the value behind the window
    is closer to the median than its first value, so two comparisons tell whether value j is inside.
    """
    m = len(picks)
    spare = m - keep
    block = np.zeros((m, _BLOCK), bits.dtype)
    values = block.view(out.dtype)
    total = np.zeros(_BLOCK, np.float64)
    median = np.zeros(_BLOCK, out.dtype)
    half = out.dtype.type(0.5)
    for start in range(0, len(out), _BLOCK):
        width = min(_BLOCK, len(out) - start)
        _load(bits, stride, picks, start, width, block)
        _sort(block, comparators)
        for i in range(m):
            _flip(block[i], block[i])
        for t in range(_BLOCK):
            median[t] = (values[(m - 1) // 2, t] + values[m // 2, t]) * half
        total[:] = 0.0
        for j in range(m):
            if j < spare:
                for t in range(_BLOCK):
                    passed = values[j + keep, t] - median[t] < median[t] - values[j, t]
                    reached = j < keep or values[j, t] - median[t] < median[t] - values[max(j - keep, 0), t]
                    total[t] += values[j, t] if reached and not passed else 0.0
            elif j < keep:
                for t in range(_BLOCK):
                    total[t] += values[j, t]
            else:
                for t in range(_BLOCK):
                    reached = values[j, t] - median[t] < median[t] - values[j - keep, t]
                    total[t] += values[j, t] if reached else 0.0
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

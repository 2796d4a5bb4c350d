# SPDX-License-Identifier: Apache-2.0
"""The compiled loops that choose k of n entries; importing this file imports Numba.

Magnitudes are compared as whole numbers, which are their bits without the sign: the order is the same, NaN is the
largest, and equal magnitudes are equal numbers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_DIGIT = 11  # bits that one pass of the exact selection reads
_RUN = 32  # entries that are skipped together where none is large


@njit(nogil=True, cache=True, error_model="numpy")
def _mask(words):
    return (np.int64(1) << (8 * words.itemsize - 1)) - 1


@njit(nogil=True, cache=True, error_model="numpy")
def sample(words, out):
    """Takes magnitudes at irregular places, the same on every call."""
    for i in range(len(out)):
        place = (np.uint64(i) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(24)
        out[i] = words[place % np.uint64(len(words))] & _mask(words)


@njit(nogil=True, cache=True, error_model="numpy")
def candidates(words, threshold, out):
    """Writes the places of magnitudes >= threshold, ascending; returns their number, which may exceed those written."""
    # compared in the dtype of the words: in 64 bits the compiler compares half as many at a time
    dtype = words.dtype.type
    mask, least = dtype(_mask(words)), dtype(threshold)
    count, last = 0, len(out) - 1
    whole = len(words) // _RUN * _RUN
    for start in range(0, whole, _RUN):
        any_large = dtype(0)
        for i in range(_RUN):
            any_large |= dtype(dtype(words[start + i] & mask) >= least)
        if any_large:
            for i in range(start, start + _RUN):
                out[min(count, last)] = i
                count += np.int64(dtype(words[i] & mask) >= least)
    for i in range(whole, len(words)):
        out[min(count, last)] = i
        count += np.int64(dtype(words[i] & mask) >= least)
    return count


@njit(nogil=True, cache=True, error_model="numpy")
def kth_largest(words, places, k):
    """The k-th largest magnitude among the places (all if none are named), and how many are larger.

    A histogram of the highest digit shows the bin that holds it; the next pass reads this bin only.
    """
    mask = _mask(words)
    take_all = len(places) == 0
    count = len(words) if take_all else len(places)
    histogram = np.empty(1 << _DIGIT, np.int64)
    shift = 8 * words.itemsize - 1
    prefix, larger = np.int64(0), 0
    while shift > 0:
        digit = min(_DIGIT, shift)
        high, shift = shift, shift - digit
        histogram[:] = 0
        for j in range(count):
            key = np.int64(words[j if take_all else places[j]]) & mask
            if key >> high == prefix:
                histogram[(key >> shift) & ((1 << digit) - 1)] += 1
        b = (1 << digit) - 1
        while larger + histogram[b] < k:
            larger += histogram[b]
            b -= 1
        prefix = (prefix << digit) | b
    return prefix, larger


@njit(nogil=True, cache=True, error_model="numpy")
def take(words, places, threshold, ties, out):
    """Takes the places (of all if none are named) above a threshold, and the first `ties` at it, ascending."""
    mask = _mask(words)
    take_all = len(places) == 0
    count = 0
    for j in range(len(words) if take_all else len(places)):
        i = j if take_all else places[j]
        key = np.int64(words[i]) & mask
        if key > threshold or (key == threshold and ties > 0):
            ties -= np.int64(key == threshold)
            out[count] = i
            count += 1


@njit(nogil=True, cache=True, error_model="numpy")
def largest_of_chunks(words, starts, sizes, ks, places):
    """Writes the places of the ks[c] largest magnitudes of each chunk, ascending; of equal ones the first."""
    everything, written = np.empty(0, np.int64), 0
    for c in range(len(ks)):
        chunk, out = words[starts[c] : starts[c] + sizes[c]], places[written : written + ks[c]]
        threshold, larger = kth_largest(chunk, everything, ks[c])
        take(chunk, everything, threshold, ks[c] - larger, out)
        for i in range(len(out)):
            out[i] += starts[c]
        written += ks[c]


@njit(nogil=True, cache=True, error_model="numpy")
def each_in_its_run(places, starts, sizes, ks):
    """Whether the first ks[0] of ascending places lie in the first run, and so on."""
    written = 0
    for c in range(len(ks)):
        last = written + ks[c] - 1
        if ks[c] > 0 and (places[written] < starts[c] or places[last] >= starts[c] + sizes[c]):
            return False
        written += ks[c]
    return True

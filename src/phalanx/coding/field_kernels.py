# SPDX-License-Identifier: Apache-2.0
"""The compiled loops of the cyclic code over the field of p = 2^31 - 1; importing this file imports Numba.

Sums of products are reduced as seldom as 64 bits allow. As 2^31 = 1, a number x is (x mod 2^31) + floor(x / 2^31).
"""

from __future__ import annotations

import numpy as np
from numba import njit

P = (1 << 31) - 1
BLOCK = 1024  # columns that share an outer factor; inner factors of so many stay in the nearest cache
_MASK, _TOP = np.uint64(P), np.uint32(P)
_SHIFT = np.uint64(31)


@njit(nogil=True, cache=True, error_model="numpy")
def quantize(x, bits, scale, top, out):
    """out = x scale, rounded and cut at +-top; returns the bits of the largest magnitude, and how many were cut.

    Args:
        bits: x as whole numbers of its size, in which NaN and Inf are the largest.
    """
    cut = 0
    for t in range(x.shape[0]):
        y = np.rint(np.float64(x[t]) * scale)
        cut += np.int64(abs(y) > top)
        # NaN is not below top
        y = y if y < top else top
        y = y if y > -top else -top
        out[t] = np.int32(y)
    largest = np.int64(0)
    most = (np.int64(1) << np.int64(8 * bits.itemsize - 1)) - np.int64(1)
    for t in range(bits.shape[0]):
        largest = max(largest, np.int64(bits[t]) & most)
    return largest, cut


@njit(nogil=True, cache=True, error_model="numpy")
def encode(digits, places, factors, out):
    """out[t] = sum_j factors[j] digits[places[j], t] mod p, for factors within p / 2 of zero."""
    width = out.shape[0]
    total = np.empty(BLOCK, np.int64)
    for begin in range(0, width, BLOCK):
        size = min(BLOCK, width - begin)
        total[:size] = np.int64(P) << np.int64(30)
        for j in range(places.shape[0]):
            row, factor = digits[places[j], begin : begin + size], np.int64(factors[j])
            for t in range(size):
                total[t] += factor * np.int64(row[t])
        for t in range(size):
            out[begin + t] = np.int32(_rest(np.uint64(total[t])))


@njit(nogil=True, cache=True, error_model="numpy")
def project(flat, stride, num_rows, width, inner, outer, sums):
    """sums[i, q] = sum_t x[i, t] outer[q, t // BLOCK] inner[q, t % BLOCK] mod p of rows x[i, t] = flat[i stride + t].

    Args:
        flat: uint32; the highest bit does not count, here as in `combine`.
        inner: (3, BLOCK) uint32 below 2^21, so that BLOCK products add up in 64 bits.
        outer: (3, blocks) uint32 below p.
    """
    a, b, c = inner[0], inner[1], inner[2]
    # three rows for one load of the factors: as many sums as there are registers
    for first in range(0, num_rows, 3):
        i, j, k = first, min(first + 1, num_rows - 1), min(first + 2, num_rows - 1)
        sums[i], sums[j], sums[k] = 0, 0, 0
        for begin in range(0, width, BLOCK):
            size = min(BLOCK, width - begin)
            x = flat[i * stride + begin : i * stride + begin + size]
            y = flat[j * stride + begin : j * stride + begin + size]
            z = flat[k * stride + begin : k * stride + begin + size]
            xa = xb = xc = ya = yb = yc = za = zb = zc = np.uint64(0)
            for t in range(size):
                u, v, w = np.uint64(x[t] & _TOP), np.uint64(y[t] & _TOP), np.uint64(z[t] & _TOP)
                f, g, h = np.uint64(a[t]), np.uint64(b[t]), np.uint64(c[t])
                xa, xb, xc = xa + u * f, xb + u * g, xc + u * h
                ya, yb, yc = ya + v * f, yb + v * g, yc + v * h
                za, zb, zc = za + w * f, zb + w * g, zc + w * h
            block = begin // BLOCK
            _add(sums[i], xa, xb, xc, outer, block)
            if j > i:
                _add(sums[j], ya, yb, yc, outer, block)
            if k > j:
                _add(sums[k], za, zb, zc, outer, block)


@njit(nogil=True, cache=True, error_model="numpy")
def combine(flat, stride, picks, weights, out):
    """out[t] = sum_i weights[i] x[picks[i], t] mod p, as the number next to zero.

    Args:
        picks: a multiple of four rows.
        weights: uint32 below p.
    """
    width = out.shape[0]
    total = np.empty(BLOCK, np.uint64)
    for begin in range(0, width, BLOCK):
        size = min(BLOCK, width - begin)
        total[:size] = np.uint64(0)
        for i in range(0, picks.shape[0], 4):
            x, y = _strip(flat, picks[i] * stride + begin, size), _strip(flat, picks[i + 1] * stride + begin, size)
            z, w = _strip(flat, picks[i + 2] * stride + begin, size), _strip(flat, picks[i + 3] * stride + begin, size)
            a, b = np.uint64(weights[i]), np.uint64(weights[i + 1])
            c, d = np.uint64(weights[i + 2]), np.uint64(weights[i + 3])
            for t in range(size):
                # four products of 62 bits fill 64
                u, v = np.uint64(x[t] & _TOP) * a, np.uint64(y[t] & _TOP) * b
                r, q = np.uint64(z[t] & _TOP) * c, np.uint64(w[t] & _TOP) * d
                u = u + v + (r + q)
                total[t] += (u & _MASK) + (u >> _SHIFT)
        for t in range(size):
            rest = np.int64(_rest(total[t]))
            out[begin + t] = np.int32(rest - P if rest > P // 2 else rest)


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _strip(flat, start, size):
    return flat[start : start + size]


@njit(nogil=True, cache=True, error_model="numpy")
def _add(sums, a, b, c, outer, block):
    sums[0] = _rest(np.uint64(sums[0]) + _rest(a) * np.uint64(outer[0, block]))
    sums[1] = _rest(np.uint64(sums[1]) + _rest(b) * np.uint64(outer[1, block]))
    sums[2] = _rest(np.uint64(sums[2]) + _rest(c) * np.uint64(outer[2, block]))


@njit(nogil=True, cache=True, error_model="numpy", inline="always")
def _rest(x):
    """x mod p."""
    x = (x & _MASK) + (x >> _SHIFT)
    x = (x & _MASK) + (x >> _SHIFT)
    return x - _MASK if x >= _MASK else x

# SPDX-License-Identifier: Apache-2.0
"""The compiled loops of the cyclic code; importing this file imports Numba.

Random factors are hashes of (key, column), made where they are used: stored, they would be as large as some rows. The
hash is this file's own, as Numba's cache does not notice when a function of another file has changed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

COUNT = 4  # projections: the 64 bits of one hash are four factors
_BLOCK = 4096  # columns: longer strips of a row come faster from memory, factors of fewer stay nearer to the cores


@njit(nogil=True, cache=True, error_model="numpy")
def factors(key, start, out):
    """out[p, t] = factor p of column start + t: 16 random bits as an odd multiple of 2^-16 in (-1, 1), never zero."""
    for t in range(out.shape[1]):
        z = np.uint64(np.uint64(key) + np.uint64(start + t) * np.uint64(0x9E3779B97F4A7C15))
        z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
        z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
        z = np.uint64(z ^ (z >> np.uint64(31)))
        for p in range(COUNT):
            bits = np.int64((z >> np.uint64(16 * p)) & np.uint64(0xFFFF))
            out[p, t] = np.float64(2 * bits - 65535) * 2.0**-16


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def sweep(flat, stride, num_rows, width, key, start, shares, sums, mixed):
    """sums[i, p] = sum_t x[i, t] * factor p of column start + t and mixed[t] = sum_i shares[i] x[i, t], in float64.

    Rows x[i, t] = flat[i * stride + t]; mixed is rounded once, to its own dtype.
    """
    f = np.empty((COUNT, _BLOCK), np.float64)
    total = np.empty(_BLOCK, np.float64)
    sums[:] = 0.0
    for begin in range(0, width, _BLOCK):
        size = min(_BLOCK, width - begin)
        factors(key, start + begin, f[:, :size])
        f0, f1, f2, f3 = f[0], f[1], f[2], f[3]
        total[:size] = 0.0
        # five rows for one load of the factors: as many sums as there are registers
        for i in range(0, num_rows, 5):
            a, u = _row(flat, stride, num_rows, i, begin, size, shares)
            b, v = _row(flat, stride, num_rows, i + 1, begin, size, shares)
            c, w = _row(flat, stride, num_rows, i + 2, begin, size, shares)
            d, x = _row(flat, stride, num_rows, i + 3, begin, size, shares)
            e, y = _row(flat, stride, num_rows, i + 4, begin, size, shares)
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = c0 = c1 = c2 = c3 = 0.0
            d0 = d1 = d2 = d3 = e0 = e1 = e2 = e3 = 0.0
            for t in range(size):
                p, q, r, s = f0[t], f1[t], f2[t], f3[t]
                g, h, j, k, m = np.float64(a[t]), np.float64(b[t]), np.float64(c[t]), np.float64(d[t]), np.float64(e[t])
                a0, a1, a2, a3 = a0 + g * p, a1 + g * q, a2 + g * r, a3 + g * s
                b0, b1, b2, b3 = b0 + h * p, b1 + h * q, b2 + h * r, b3 + h * s
                c0, c1, c2, c3 = c0 + j * p, c1 + j * q, c2 + j * r, c3 + j * s
                d0, d1, d2, d3 = d0 + k * p, d1 + k * q, d2 + k * r, d3 + k * s
                e0, e1, e2, e3 = e0 + m * p, e1 + m * q, e2 + m * r, e3 + m * s
                total[t] += u * g + v * h + w * j + x * k + y * m
            _add(sums, i, a0, a1, a2, a3)
            _add(sums, i + 1, b0, b1, b2, b3)
            _add(sums, i + 2, c0, c1, c2, c3)
            _add(sums, i + 3, d0, d1, d2, d3)
            _add(sums, i + 4, e0, e1, e2, e3)
        mixed[begin : begin + size] = total[:size]


@njit(nogil=True, cache=True, error_model="numpy")
def _row(flat, stride, num_rows, i, begin, size, shares):
    """Columns of row i and its share; where there is no such row the last one stands in, with a share of zero."""
    offset = min(i, num_rows - 1) * stride + begin
    return flat[offset : offset + size], shares[i] if i < num_rows else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def _add(sums, i, a, b, c, d):
    if i < len(sums):
        sums[i, 0] += a
        sums[i, 1] += b
        sums[i, 2] += c
        sums[i, 3] += d

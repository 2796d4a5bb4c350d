# SPDX-License-Identifier: Apache-2.0
"""The compiled loops of the cyclic code; importing this file imports Numba.

Random factors are hashes of (key, column), made where they are used: stored, they would be as large as some rows. The
hash is this file's own, as Numba's cache does not notice when a function of another file has changed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

COUNT = 4  # projections: the 64 bits of one hash are four factors
_BLOCK = 16384  # columns: longer strips of a row come faster from memory, and their factors stay in the cache


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
def project(flat, stride, num_rows, width, key, start, out):
    """out[i, p] = sum_t flat[i * stride + t] * factor p of column start + t, in float64."""
    f = np.empty((COUNT, _BLOCK), np.float64)
    out[:] = 0.0
    last = num_rows - 1
    for begin in range(0, width, _BLOCK):
        size = min(_BLOCK, width - begin)
        factors(key, start + begin, f[:, :size])
        f0, f1, f2, f3 = f[0], f[1], f[2], f[3]
        # three rows at a time for one load of the factors; the last row stands in where fewer are left
        for i in range(0, num_rows, 3):
            j, k = min(i + 1, last), min(i + 2, last)
            x = flat[i * stride + begin : i * stride + begin + size]
            y = flat[j * stride + begin : j * stride + begin + size]
            z = flat[k * stride + begin : k * stride + begin + size]
            x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = z0 = z1 = z2 = z3 = 0.0
            for t in range(size):
                a, b, c = np.float64(x[t]), np.float64(y[t]), np.float64(z[t])
                x0 += a * f0[t]
                x1 += a * f1[t]
                x2 += a * f2[t]
                x3 += a * f3[t]
                y0 += b * f0[t]
                y1 += b * f1[t]
                y2 += b * f2[t]
                y3 += b * f3[t]
                z0 += c * f0[t]
                z1 += c * f1[t]
                z2 += c * f2[t]
                z3 += c * f3[t]
            _add(out[i], x0, x1, x2, x3)
            if j > i:
                _add(out[j], y0, y1, y2, y3)
            if k > j:
                _add(out[k], z0, z1, z2, z3)


@njit(nogil=True, cache=True, error_model="numpy")
def _add(out, a, b, c, d):
    out[0] += a
    out[1] += b
    out[2] += c
    out[3] += d

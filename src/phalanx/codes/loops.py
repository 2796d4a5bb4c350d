# SPDX-License-Identifier: Apache-2.0
"""The compiled loop of the cyclic code; importing this file imports Numba.

Random factors are hashes of (key, column), made where they are used: stored, they would be as large as some rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

PROJECTIONS = 4  # of 16 bits each, from one hash
_BLOCK = 2048  # columns whose factors stay in the second-level cache


@njit(nogil=True, cache=True, error_model="numpy")
def mix(key, place):
    """64 random bits for a key and a place (splitmix64)."""
    z = np.uint64(np.uint64(key) + np.uint64(place) * np.uint64(0x9E3779B97F4A7C15))
    z = np.uint64((z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9))
    z = np.uint64((z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB))
    return np.uint64(z ^ (z >> np.uint64(31)))


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def project(rows, first, key, out):
    """out[i, q] += sum_j rows[i, j] f_q(first + j), in float64; the factors lie in (-1, 1)."""
    n, width = rows.shape
    factors = np.empty((PROJECTIONS, _BLOCK), np.float64)
    for start in range(0, width, _BLOCK):
        count = min(_BLOCK, width - start)
        for j in range(count):
            bits = mix(key, first + start + j)
            for q in range(PROJECTIONS):
                level = np.float64((bits >> np.uint64(16 * q)) & np.uint64(0xFFFF))
                factors[q, j] = (level + 0.5) / 32768.0 - 1.0
        for i in range(n):
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            for j in range(count):
                x = np.float64(rows[i, start + j])
                a += x * factors[0, j]
                b += x * factors[1, j]
                c += x * factors[2, j]
                d += x * factors[3, j]
            out[i, 0] += a
            out[i, 1] += b
            out[i, 2] += c
            out[i, 3] += d

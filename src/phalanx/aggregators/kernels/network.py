# SPDX-License-Identifier: Apache-2.0
"""Sorting networks, cut down to what the wanted order statistics need.

A network is a fixed list of comparators (i, j), i < j, each of which puts the smaller of two values on wire i and the
larger on wire j; so it sorts all columns of a block at once, without a branch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

BOTH, LOW, HIGH = 0, 1, 2  # which outputs of a comparator are still read
_UNREAD, _SUMMED, _READ = 0, 1, 2


@lru_cache(maxsize=256)
def network(n: int, lo: int, hi: int, summed: bool) -> np.ndarray:
    """The comparators (i, j, outputs) that bring order statistics lo .. hi-1 of n values to the wires lo .. hi-1.

    Walking backwards from the wanted wires drops each comparator that nobody reads, and half of one that is read on one
    side only.

    Args:
        summed: only the sum of the wanted wires is read, so that they may come in any order among themselves.
    """
    wires = [_UNREAD] * n
    wires[lo:hi] = [_SUMMED if summed else _READ] * (hi - lo)
    kept = []
    for i, j in reversed(_merge_exchange(n)):
        pair = (wires[i], wires[j])
        # a + b = min + max: exchanging two summands changes nothing
        if pair in ((_UNREAD, _UNREAD), (_SUMMED, _SUMMED)):
            continue
        kept.append((i, j, BOTH if all(pair) else LOW if pair[0] else HIGH))
        wires[i] = wires[j] = _READ
    comparators = np.array(kept[::-1], dtype=np.int64).reshape(-1, 3)
    comparators.setflags(write=False)
    return comparators


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

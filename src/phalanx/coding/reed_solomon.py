# SPDX-License-Identifier: Apache-2.0
"""The generalized Reed-Solomon code over p = 2^31 - 1: factors of the workers, false rows, and the sum of all units.

Worker i has the point a_i = i + 1. Of one coordinate, honest rows are the values of one polynomial of degree below
k = n - 2s at these points, and the sum of the units is its leading coefficient.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

P = (1 << 31) - 1


class Unexplained(ValueError):
    """No set of rows of the allowed size explains what arrived."""


def supports(n: int, s: int) -> tuple[tuple[int, ...], ...]:
    """The units of each worker: 2s + 1 from its own number on, around the ring, ascending."""
    return tuple(tuple(sorted((i + k) % n for k in range(2 * s + 1))) for i in range(n))


@lru_cache(maxsize=8)
def factors(n: int, s: int) -> np.ndarray:
    """F, (n, n) int32 within p / 2 of zero: F[i, j] = f_j(a_i), zero where worker i does not have unit j.

    f_j is the monic polynomial that vanishes at the n - 2s - 1 points of the workers without unit j.
    """
    points = np.arange(1, n + 1, dtype=np.int64)
    table = np.ones((n, n), dtype=np.int64)
    for m, units in enumerate(supports(n, s)):
        without = np.setdiff1d(np.arange(n), units)
        table[:, without] = table[:, without] * (points - points[m])[:, None] % P
    return np.where(table > P // 2, table - P, table).astype(np.int32)


@lru_cache(maxsize=64)
def weights(workers: tuple[int, ...]) -> tuple[int, ...]:
    """w_i = 1 / prod_{m != i} (a_i - a_m) over these workers; sum w_i y_i is the leading coefficient."""
    out = []
    for i in workers:
        product = 1
        for m in workers:
            if m != i:
                product = product * (i - m) % P
        out.append(pow(product, -1, P))
    return tuple(out)


def locate(values: Sequence[Sequence[int]], workers: Sequence[int], k: int) -> tuple[int, ...]:
    """The false rows: the smallest set without which the others fit a polynomial of degree below k in each column.

    Up to half as many as there are rows beyond k are found with certainty, whoever they are.

    Args:
        values: of each worker, its projections.
        workers: those that are present, ascending; at least k.
    Raises:
        Unexplained: more rows are false.
    """
    present, most = tuple(workers), (len(workers) - k) // 2
    columns = [list(column) for column in zip(*values, strict=True)]
    false: set[int] = set()
    for column in columns:
        false |= _errors(column, present, k)
    rest = tuple(worker for worker in present if worker not in false)
    if len(false) > most:
        raise Unexplained
    kept = [i for i, worker in enumerate(present) if worker not in false]
    if any(any(_syndromes([column[i] for i in kept], rest, k)) for column in columns):
        raise Unexplained
    return tuple(sorted(false))


def _syndromes(column: Sequence[int], workers: tuple[int, ...], k: int) -> list[int]:
    """sum_i w_i a_i^j y_i for j < m - k: all zero exactly for the values of a polynomial of degree below k."""
    terms = [w * y % P for w, y in zip(weights(workers), column, strict=True)]
    out = []
    for _ in range(len(workers) - k):
        out.append(sum(terms) % P)
        terms = [(i + 1) * term % P for i, term in zip(workers, terms, strict=True)]
    return out


def _errors(column: Sequence[int], workers: tuple[int, ...], k: int) -> set[int]:
    """The workers at the roots of the shortest locator polynomial of the syndromes; all of them if it has none such."""
    syndromes = _syndromes(column, workers, k)
    if not any(syndromes):
        return set()
    locator = _shortest_recurrence(syndromes)
    roots = set()
    for worker in workers:
        # the reversed polynomial has the points themselves as roots
        value = 0
        for coefficient in locator:
            value = (value * (worker + 1) + coefficient) % P
        if value == 0:
            roots.add(worker)
    if len(roots) != len(locator) - 1:
        raise Unexplained
    return roots


def _shortest_recurrence(sequence: Sequence[int]) -> list[int]:
    """c with sum_l c[l] sequence[j - l] = 0 for all j >= len(c) - 1, as short as possible, and c[0] = 1.

    Source: Massey, Shift-register synthesis and BCH decoding, 1969, Algorithm 2; it finds what the equations of
        Berlekamp and Welch determine.
    """
    current, previous, length, gap, last = [1], [1], 0, 1, 1
    for j, value in enumerate(sequence):
        error = value
        for step in range(1, min(length, len(current) - 1) + 1):
            error += current[step] * sequence[j - step]
        error %= P
        if error == 0:
            gap += 1
            continue
        ratio = error * pow(last, -1, P) % P
        updated = current + [0] * max(0, len(previous) + gap - len(current))
        for step, coefficient in enumerate(previous):
            updated[step + gap] = (updated[step + gap] - ratio * coefficient) % P
        if 2 * length <= j:
            length, previous, last, gap = j + 1 - length, current, error, 1
        else:
            gap += 1
        current = updated
    return current[: length + 1] + [0] * (length + 1 - len(current))

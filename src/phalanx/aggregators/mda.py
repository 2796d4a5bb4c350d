# SPDX-License-Identifier: Apache-2.0
"""A rule that averages the subset of rows with the smallest diameter."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import distances
from phalanx.aggregators.kernels.selection import canonical_order
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State

MOST_FAULTS = 25  # the search doubles some every second f; with 25 it takes about a second at worst


@method("mda", "aggregator")
class Mda(Aggregator):
    """Minimum-diameter averaging: the mean of those n - f rows whose largest distance from each other is smallest.

    A subset has a diameter of at most t if f rows can be left out so that no two of the others are farther apart than
    t; the search for these f is exact. Weights are ignored.

    Shapes: (n, d) -> (1, d), n > 2f, f <= 25.
    Args:
        f: number of Byzantine rows to tolerate, at most 25.
    Raises:
        ValueError: n <= 2f.
    Source: El Mhamdi et al., Genuinely Distributed Byzantine Machine Learning, 2020, arXiv:1905.03853, section 3.
    Differs: of several subsets with the smallest diameter the paper takes any. Here, where fewer than f rows have to be
        left out, the ones with the largest sums of distances go as well.
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"mda needs f >= 0, got f={self.f}")
        require(
            self.f <= MOST_FAULTS,
            f"mda searches for the f rows to leave out, with f at most {MOST_FAULTS}, got f={self.f}; "
            f"multi_krum(f={self.f}) needs no search",
        )

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = len(stack.rows)
        order = canonical_order(stack)
        squared = distances(stack.rows, stack.columns).squared[np.ix_(order, order)]
        left_out = order[_left_out(squared, f)]
        share = torch.full((n,), 1 / (n - f), dtype=torch.float64)
        share[left_out.tolist()] = 0
        kept = sorted(set(range(n)) - set(left_out.tolist()))
        notes = [Note("chosen", worker) for i in kept for worker in stack.sources[i]]
        return stack.one(mix_one(share, stack.rows)).note(notes), {}


def _left_out(squared: np.ndarray, f: int) -> np.ndarray:
    """Positions of the f rows to leave out. Shapes: (n, n) -> (f,)."""
    n = len(squared)
    if f == 0:
        return np.zeros(0, dtype=np.int64)
    diameters = np.unique(squared)
    low, high = 0, len(diameters) - 1
    cover: set[int] = set()
    while low <= high:
        middle = (low + high) // 2
        far = squared > diameters[middle] * (1 + 1e-12)
        found = _cover({i: set(np.flatnonzero(far[i]).tolist()) for i in range(n) if far[i].any()}, f)
        if found is None:
            low = middle + 1
        else:
            cover, high = found, middle - 1
    rest = [i for i in np.argsort(-np.sqrt(squared).sum(axis=1), kind="stable").tolist() if i not in cover]
    return np.array(sorted([*cover, *rest[: f - len(cover)]]), dtype=np.int64)


def _cover(far: dict[int, set[int]], budget: int) -> set[int] | None:
    """At most `budget` rows that touch every pair of far rows; None if there are none.

    A row with more far rows than the budget has to go. Else the row with most of them goes, or all that are far from
    it.
    """
    if not far:
        return set()
    if budget == 0:
        return None
    row = max(far, key=lambda i: (len(far[i]), -i))
    degree = len(far[row])
    if sum(map(len, far.values())) > 2 * budget * degree:
        return None
    rest = _cover(_without(far, {row}), budget - 1)
    if rest is not None:
        return rest | {row}
    # where every row has at most one far row, either of the two will do
    if degree == 1 or degree > budget:
        return None
    neighbours = set(far[row])
    rest = _cover(_without(far, neighbours), budget - degree)
    return None if rest is None else rest | neighbours


def _without(far: dict[int, set[int]], rows: set[int]) -> dict[int, set[int]]:
    """The pairs of far rows that are left without these rows."""
    left = {i: others - rows for i, others in far.items() if i not in rows}
    return {i: others for i, others in left.items() if others}

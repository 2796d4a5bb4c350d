# SPDX-License-Identifier: Apache-2.0
"""A rule that averages the subset of rows that varies least in its worst direction."""

from __future__ import annotations

from itertools import combinations, islice
from math import comb
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

MOST_SUBSETS = 20_000  # some seconds of eigenvalues
_BATCH = 2_000


@method("smea", "aggregator")
class Smea(Aggregator):
    """The mean of those n - f rows whose covariance has the smallest largest eigenvalue.

    It looks at all subsets of n - f rows, so it is for few of them. Weights are ignored.

    Shapes: (n, d) -> (1, d), n > 2f, at most 20,000 subsets.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n <= 2f, or too many subsets.
    Source: Allouah et al., Robust Distributed Learning: Tight Error Bounds and Breakdown Point under Data
        Heterogeneity, 2023, arXiv:2309.13591, section 5 (smallest maximum eigenvalue averaging). As published.
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"smea needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def rows_out(self, n: int) -> int:
        merged = super().rows_out(n)
        _check_subsets(n, self.f)
        return merged

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = len(stack.rows)
        _check_subsets(n, f)
        order = canonical_order(stack)
        inner = distances(stack.rows, stack.columns).inner[np.ix_(order, order)]
        chosen = order[_least_varying(inner, n - f)]
        share = torch.zeros(n, dtype=torch.float64)
        share[chosen.tolist()] = 1 / (n - f)
        notes = [Note("chosen", worker) for i in sorted(chosen.tolist()) for worker in stack.sources[i]]
        return stack.one(mix_one(share, stack.rows)).note(notes), {}


def _check_subsets(n: int, f: int) -> None:
    subsets = comb(n, f)
    require(
        subsets <= MOST_SUBSETS,
        f"smea(f={f}) would look at {subsets:,} subsets of {n} rows, and {MOST_SUBSETS:,} is the most; "
        f"caf(f={f}) needs no subsets",
    )


def _least_varying(inner: np.ndarray, size: int) -> np.ndarray:
    """The first of the best subsets, as positions. Shapes: (n, n) -> (size,)."""
    every = combinations(range(len(inner)), size)
    best, least = np.arange(size), np.inf
    while chunk := list(islice(every, _BATCH)):
        subsets = np.array(chunk)
        products = inner[subsets[:, :, None], subsets[:, None, :]]
        means = products.mean(axis=2, keepdims=True)
        centred = products - means - means.transpose(0, 2, 1) + means.mean(axis=1, keepdims=True)
        variances = np.linalg.eigvalsh(centred)[:, -1]
        first = int(variances.argmin())
        # rounding must not decide between equal subsets
        if variances[first] < least * (1 - 1e-9):
            best, least = subsets[first], float(variances[first])
    return best

# SPDX-License-Identifier: Apache-2.0
"""The rows that point where most do, cut to the median length, with noise."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import cosines, inner_products, lengths
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.transforms.noise import Noise
from phalanx.core.trees import State


@method("flame", "aggregator")
class Flame(Aggregator):
    """Rows that lie with most others by their angles, each cut to the median norm of all, and their mean, with noise.

    Two rows are together where their cosine distance is at most t, for the least t at which more than half of all rows
    hang together; others join them up to reach * t. Normal noise of deviation noise * median norm is added to the
    result's directions. Examples do not count.

    Shapes: (n, d) -> (1, d), n > 2f.
    Args:
        noise: of the result, in median norms, >= 0; 0 adds none.
        reach: >= 1, which is as published; higher shuts out fewer honest clients that are unlike, and fewer attackers.
    Source: Nguyen et al., FLAME: Taming Backdoors in Federated Learning, 2021, arXiv:2101.02281, Algorithm 1.
        As published at reach=1: HDBSCAN with a least size of n/2 + 1 can find one cluster only, of which it keeps the
        rows that part last, and single linkage finds these.
    """

    noise: float = 0.001
    reach: float = 1.0

    requirement: ClassVar[str] = "n > 2f"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(0 <= self.noise < float("inf"), f"flame needs a finite noise >= 0, got noise={self.noise}")
        require(1 <= self.reach < float("inf"), f"flame needs a finite reach >= 1, got reach={self.reach}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        inner = inner_products(stack.rows[:, : stack.layout.stepped], None)
        long = lengths(inner)
        kept = _together(inner, self.reach)
        middle = float(np.median(long))
        cut = np.minimum(1, np.divide(middle, long, out=np.ones_like(long), where=long > 0))
        weights = torch.from_numpy(kept / kept.sum())
        row = mix_one(weights, stack.rows)
        row[: stack.layout.stepped] = mix_one(weights * torch.from_numpy(cut), stack.rows[:, : stack.layout.stepped])
        chosen = [Note("chosen", w) for i in np.flatnonzero(kept) for w in stack.sources[i]]
        out = stack.one(row).note(chosen)
        if self.noise and middle > 0:
            out, _ = Noise(self.noise * middle)(out, None, round)
        return out, {}


def _together(inner: np.ndarray, reach: float) -> np.ndarray:
    """Whether each row hangs together with most others. Shapes: (n, n) -> (n,)."""
    n = len(inner)
    if n < 3:
        return np.ones(n, dtype=bool)
    apart = np.clip(1 - cosines(inner), 0, 2)
    np.fill_diagonal(apart, 0)
    # rounding must not part two rows that are one
    heights = np.unique(apart) * (1 + 1e-9) + 1e-12
    low, high = 0, len(heights) - 1
    while low < high:
        middle = (low + high) // 2
        sizes = np.bincount(_parts(apart, heights[middle]))
        low, high = (low, middle) if sizes.max() > n // 2 else (middle + 1, high)
    first = _parts(apart, heights[low])
    core = np.flatnonzero(first == np.bincount(first).argmax())[0]
    wider = _parts(apart, reach * heights[low])
    return wider == wider[core]


def _parts(apart: np.ndarray, most: float) -> np.ndarray:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    return connected_components(csr_array(apart <= most), directed=False)[1]

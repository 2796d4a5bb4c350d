# SPDX-License-Identifier: Apache-2.0
"""A rule that averages the rows of the largest cluster of directions, clipped to the median norm, and adds noise."""

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
    """The mean of the rows in the largest cluster by angle, each clipped to the median norm of all rows, plus noise.

    Two rows are linked if their cosine distance is at most t, for the smallest t at which the links connect more than
    half of all rows; then rows that links up to reach * t connect to them join. Normal noise of standard deviation
    noise * median norm is added to the directions of the result. Weights are ignored.

    Shapes: (n, d) -> (1, d), n > 2f.
    Args:
        noise: standard deviation of the noise, in median norms, >= 0; 0 adds none.
        reach: >= 1; 1 is as published. A higher one excludes fewer unusual honest clients, and fewer attackers.
    Source: Nguyen et al., FLAME: Taming Backdoors in Federated Learning, 2021, arXiv:2101.02281, Algorithm 1.
        As published at reach=1: HDBSCAN with a minimum size of n/2 + 1 finds one cluster only and keeps the rows that
        separate last; single linkage gives the same rows.
    """

    noise: float = 0.001
    reach: float = 1.0

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(0 <= self.noise < float("inf"), f"flame needs a finite noise >= 0, got noise={self.noise}")
        require(1 <= self.reach < float("inf"), f"flame needs a finite reach >= 1, got reach={self.reach}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        directions = stack.directions
        inner = inner_products(directions.rows, None, columns=directions.columns)
        norms = lengths(inner)
        kept = _main_cluster(inner, self.reach)
        median_norm = float(np.median(norms))
        scale = np.minimum(1, np.divide(median_norm, norms, out=np.ones_like(norms), where=norms > 0))
        weights = torch.from_numpy(kept / kept.sum())
        row = mix_one(weights, stack.rows)
        row[: stack.layout.stepped] = mix_one(weights * torch.from_numpy(scale), stack.rows[:, : stack.layout.stepped])
        chosen = [Note("chosen", w) for i in np.flatnonzero(kept) for w in stack.sources[i]]
        out = stack.one(row).note(chosen)
        if self.noise and median_norm > 0:
            out, _ = Noise(self.noise * median_norm)(out, None, round)
        return out, {}


def _main_cluster(inner: np.ndarray, reach: float) -> np.ndarray:
    """Whether each row belongs to the largest cluster. Shapes: (n, n) -> (n,)."""
    n = len(inner)
    if n < 3:
        return np.ones(n, dtype=bool)
    distances = np.clip(1 - cosines(inner), 0, 2)
    np.fill_diagonal(distances, 0)
    # rounding must not separate two equal rows
    thresholds = np.unique(distances) * (1 + 1e-9) + 1e-12
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        sizes = np.bincount(_clusters(distances, thresholds[middle]))
        low, high = (low, middle) if sizes.max() > n // 2 else (middle + 1, high)
    labels = _clusters(distances, thresholds[low])
    member = np.flatnonzero(labels == np.bincount(labels).argmax())[0]
    wide_labels = _clusters(distances, reach * thresholds[low])
    return wide_labels == wide_labels[member]


def _clusters(distances: np.ndarray, threshold: float) -> np.ndarray:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    return connected_components(csr_array(distances <= threshold), directed=False)[1]

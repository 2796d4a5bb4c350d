# SPDX-License-Identifier: Apache-2.0
"""A rule that keeps the rows of usual length in the largest cluster by the signs of their entries."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope, TooFewRows
from phalanx.core.trees import State


@method("signguard", "aggregator")
class Signguard(Aggregator):
    """The mean of the rows that pass a test of their norms and one of their signs, each clipped to the median norm.

    A row passes the first test if its norm is between `lower` and `upper` median norms. For the second, the shares of
    positive, zero and negative entries among random coordinates are clustered by mean shift, and the rows of the
    largest cluster pass. Weights are ignored.

    Shapes: (n, d) -> (1, d).
    Args:
        lower: least norm, in median norms, >= 0.
        upper: largest norm, in median norms, > lower.
        sample: share of the coordinates whose signs are counted, in (0, 1].
    Raises:
        ValueError: no row passes both tests.
    Source: Xu et al., SignGuard: Byzantine-robust federated learning through collaborative malicious gradient
        filtering, 2021, arXiv:2109.05872, Algorithm 2. As published, with a bandwidth from the median distance between
        rows.
    """

    lower: float = 0.1
    upper: float = 3.0
    sample: float = 0.1

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"

    def validate(self) -> None:
        require(
            0 <= self.lower < self.upper < float("inf"),
            f"signguard needs 0 <= lower < upper, both finite, got lower={self.lower}, upper={self.upper}",
        )
        require(0 < self.sample <= 1, f"signguard needs sample in (0, 1], got sample={self.sample}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        num_directions = stack.layout.stepped
        directions = stack.rows[:, :num_directions]
        norms = torch.linalg.vector_norm(directions, dim=1, dtype=torch.float64).numpy()
        median_norm = float(np.median(norms))
        usual = (norms >= self.lower * median_norm) & (norms <= self.upper * median_norm)
        count = max(1, round_up(self.sample * num_directions)) if num_directions else 0
        sampled = torch.randperm(num_directions, generator=round.rng())[:count].sort().values
        kept = usual & _largest_cluster(_sign_shares(directions[:, sampled.to(stack.rows.device)]))
        if not kept.any():
            raise TooFewRows("signguard: no row passes both the test of norms and that of signs", stack.notes)
        scale = np.minimum(1, np.divide(median_norm, norms, out=np.ones_like(norms), where=norms > 0))
        weights = kept / kept.sum()
        row = mix_one(torch.from_numpy(weights), stack.rows)
        row[:num_directions] = mix_one(torch.from_numpy(weights * scale), directions)
        notes = [Note("chosen", worker) for i in np.flatnonzero(kept) for worker in stack.sources[i]]
        return stack.one(row).note(notes), {}


def round_up(value: float) -> int:
    """The least whole number that is not below a value >= 0."""
    return int(np.ceil(value))


def _sign_shares(rows: torch.Tensor) -> np.ndarray:
    """The shares of positive, zero and negative entries of each row. Shapes: (n, k) -> (n, 3)."""
    counts = torch.stack([(rows > 0).sum(dim=1), (rows == 0).sum(dim=1), (rows < 0).sum(dim=1)], dim=1)
    return counts.double().numpy(force=True) / max(rows.shape[1], 1)


def _largest_cluster(features: np.ndarray) -> np.ndarray:
    """Whether each row is in the largest cluster; all where their features are equal. Shapes: (n, 3) -> (n,)."""
    from scipy.spatial.distance import pdist
    from sklearn.cluster import MeanShift

    bandwidth = float(np.median(pdist(features))) if len(features) > 1 else 0.0
    if bandwidth == 0.0:
        # more than half of all pairs are equal, so one group of equal rows is the largest
        _, group, sizes = np.unique(features.round(12), axis=0, return_inverse=True, return_counts=True)
        return group.reshape(-1) == sizes.argmax()
    labels = MeanShift(bandwidth=bandwidth).fit(features).labels_
    return labels == np.bincount(labels).argmax()

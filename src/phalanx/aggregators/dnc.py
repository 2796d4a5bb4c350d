# SPDX-License-Identifier: Apache-2.0
"""A rule that leaves out rows with large projections on the direction in which the rows vary most."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.caf import worst_direction
from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import distances
from phalanx.aggregators.kernels.selection import canonical_order
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope, TooFewRows
from phalanx.core.trees import State


@method("dnc", "aggregator")
class Dnc(Aggregator):
    """Divide and conquer: the mean of the rows that no sample of coordinates shows to be an outlier.

    For each sample the rows are reduced to `coordinates` random coordinates and centred; the score of a row is its
    squared projection on their first right singular vector, and the `share` * f rows with the largest scores are
    outliers. Weights are ignored.

    Shapes: (n, d) -> (1, d), n > share f.
    Args:
        f: number of Byzantine rows to tolerate.
        coordinates: coordinates in a sample, >= 1; all if the rows have fewer.
        samples: number of samples, >= 1; more leave out more rows.
        share: rows that a sample leaves out, in f, > 0.
    Raises:
        ValueError: no row is left.
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, Algorithm 2. As published.
    """

    f: int
    coordinates: int = 10_000
    samples: int = 1
    share: float = 1.0

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"

    def validate(self) -> None:
        require(self.f >= 0, f"dnc needs f >= 0, got f={self.f}")
        require(self.coordinates >= 1, f"dnc needs coordinates >= 1, got coordinates={self.coordinates}")
        require(self.samples >= 1, f"dnc needs samples >= 1, got samples={self.samples}")
        require(0 < self.share < math.inf, f"dnc needs a finite share > 0, got share={self.share}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return max(2 * f, math.ceil(self.share * f)) + 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n, d = stack.rows.shape
        order, generator = canonical_order(stack), round.rng()
        num_outliers = math.ceil(self.share * f)
        good = np.ones(n, dtype=bool)
        for _ in range(self.samples):
            sampled = torch.randperm(d, generator=generator)[: self.coordinates].sort().values
            inner = distances(stack.rows[:, sampled.to(stack.rows.device)]).inner[np.ix_(order, order)]
            _, scores = worst_direction(inner, np.full(n, 1 / n))
            good[order[scores.argsort(kind="stable")[n - num_outliers :]]] = False
        if not good.any():
            raise TooFewRows(f"dnc: each of the {n} rows is an outlier in one of {self.samples} samples", stack.notes)
        kept = np.flatnonzero(good).tolist()
        notes = [Note("chosen", worker) for i in kept for worker in stack.sources[i]]
        return stack.one(mix_one(torch.from_numpy(good / good.sum()), stack.rows)).note(notes), {}

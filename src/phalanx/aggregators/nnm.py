# SPDX-License-Identifier: Apache-2.0
"""A preparation for a rule: every row is replaced by the mean of its nearest neighbours."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix
from phalanx.aggregators.kernels.gram import distances
from phalanx.aggregators.kernels.selection import canonical_order
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("nnm", "aggregator")
class Nnm(Aggregator):
    """Nearest-neighbour mixing: each row becomes the plain mean of the n - f rows nearest to it, itself included.

    Shapes: (n, d) -> (n, d), n > 2f.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n <= 2f.
    Source: Allouah et al., Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity, 2023,
        arXiv:2302.01772, Algorithm 2. As published.
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"nnm needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def merges(self, n: int) -> int:
        return n

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        n = len(stack.rows)
        order = canonical_order(stack)
        squared = distances(stack.rows, stack.columns).squared[:, order]
        # equal rows are as near to a row as the row itself, and may stand in for it
        nearest = order[squared.argsort(axis=1, kind="stable")[:, : n - f]]
        share = np.zeros((n, n))
        np.put_along_axis(share, nearest, 1 / (n - f), axis=1)
        return stack.with_rows(mix(torch.from_numpy(share), stack.rows), gated=True), {}

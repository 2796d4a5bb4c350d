# SPDX-License-Identifier: Apache-2.0
"""A rule that lowers the weights of rows along the direction in which they vary most."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import distances
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("caf", "aggregator")
class Caf(Aggregator):
    """Covariance bound-agnostic filter: the weighted mean whose rows vary least in their worst direction.

    All rows begin with weight c_i = 1. A step takes the weighted mean m, the unit vector v along which the weighted
    rows vary most, and t_i = <x_i - m, v>^2; then c_i becomes c_i (1 - t_i / max t). The steps end when the weights add
    up to n - 2f or less. The rule needs no bound on the variance of honest rows. Weights of examples are ignored.

    All steps compute with n weights, from the inner products of the rows.

    Shapes: (n, d) -> (1, d), n > 2f.
    Args:
        f: number of Byzantine rows to tolerate.
    Raises:
        ValueError: n <= 2f.
    Source: Allouah et al., Towards Trustworthy Federated Learning with Untrusted Participants, 2025, arXiv:2505.01874,
        Algorithm 2. As published.
    """

    f: int

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.f >= 0, f"caf needs f >= 0, got f={self.f}")

    def tolerates(self, n: int) -> int:
        return self.f

    def least(self, f: int) -> int:
        return 2 * f + 1

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        share = _least_varying(distances(stack.rows, stack.columns).inner, f)
        return stack.one(mix_one(torch.from_numpy(share), stack.rows)), {}


def _least_varying(inner: np.ndarray, f: int) -> np.ndarray:
    """The shares of the rows, which add up to 1. Shapes: (n, n) -> (n,)."""
    n = len(inner)
    weights, best, least = np.ones(n), np.full(n, 1 / n), np.inf
    while weights.sum() > n - 2 * f:
        share = weights / weights.sum()
        variance, along = worst_direction(inner, share)
        if variance < least:
            least, best = variance, share
        if not along.any():
            break
        # each step takes the weight of one row to zero, so there are at most 2f + 1 steps
        weights *= 1 - along / along[weights > 0].max()
        weights = np.maximum(weights, 0)
    return best


def worst_direction(inner: np.ndarray, share: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest eigenvalue of the weighted covariance, and each row's squared distance from the mean along it.

    Shapes: (n, n), (n,) -> (), (n,).
    Args:
        inner: inner products of the rows around any point.
        share: weights that add up to 1.
    """
    towards = inner @ share
    centred = inner - towards[:, None] - towards[None, :] + share @ towards
    root = np.sqrt(share)
    values, vectors = np.linalg.eigh(root[:, None] * centred * root[None, :])
    variance = float(max(values[-1], 0.0))
    # below this all is rounding of the inner products
    if variance <= 1e-12 * float(np.abs(inner).max()):
        return 0.0, np.zeros(len(inner))
    return variance, (centred @ (root * vectors[:, -1])) ** 2 / variance

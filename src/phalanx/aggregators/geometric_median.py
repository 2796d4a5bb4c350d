# SPDX-License-Identifier: Apache-2.0
"""The geometric median: the point with the smallest sum of distances to the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import TINY, distances, inner_products
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State

_FAR = 10.0  # a centre farther from the best row than this many of its median distances is replaced


@method("geometric_median", "aggregator")
class GeometricMedian(Aggregator):
    """The point with the least weighted sum of Euclidean distances, sum_i w_i ||z - x_i||, by smoothed Weiszfeld steps.

    A step takes the mean of the rows with weights w_i / max(nu, ||z - x_i||). All steps compute with n weights, from
    the inner products of the rows; a row that is the minimum itself is returned as it is.

    The outcome has a note "gap": a bound on (attained - least) / attained.

    Shapes: (n, d) -> (1, d).
    Args:
        nu: smoothing distance, > 0, as a share of the smallest median distance between rows.
        tol: the steps end when the gap of the smoothed sum is at most this; a lower one is more exact.
        max_iterations: largest number of steps.
    Source: Pillutla et al., Robust Aggregation for Federated Learning, 2019, arXiv:1912.13445, Algorithm 2 (RFA).
    Differs: nu is relative, so that the scale of the rows does not matter; it starts near rows with close
        neighbours instead of at the mean, and runs to convergence instead of three steps.
    """

    nu: float = 1e-6
    tol: float = 1e-6
    max_iterations: int = 1000

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.nu > 0, f"geometric_median needs nu > 0, got nu={self.nu}")
        require(self.tol >= 0, f"geometric_median needs tol >= 0, got tol={self.tol}")
        require(
            self.max_iterations >= 1,
            f"geometric_median needs max_iterations >= 1, got {self.max_iterations} iterations",
        )

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        rows = stack.rows
        share = stack.weights.numpy() / float(stack.weights.sum())
        pairs = distances(rows, stack.columns)
        pair_distances = np.sqrt(pairs.squared)
        best = int((pair_distances @ share).argmin())
        reach = _median_reach(pair_distances, share)
        inner = pairs.inner
        is_tiny = 0 < reach[best] ** 2 < TINY
        if is_tiny or 0 < _FAR * reach[best] < np.sqrt(inner[best, best]):
            inner = inner_products(rows, rows[best], in_float64=is_tiny, columns=stack.columns)
        inner = _moved(inner, best)
        if _is_optimal(best, pair_distances, inner, share):
            return stack.one(rows[best].clone()).note([Note("gap", value=0.0)]), {}
        smallest = reach[reach > 0].min()
        start = share / np.maximum(reach, self.nu * smallest)
        solution = _weiszfeld(inner, share, start / start.sum(), self.nu * smallest, self.tol, self.max_iterations)
        point = mix_one(torch.from_numpy(solution.mixture), rows)
        return stack.one(point).note([Note("gap", value=solution.gap)]), {}


@dataclass(frozen=True)
class _Solution:
    mixture: np.ndarray
    gap: float


def _weiszfeld(
    inner: np.ndarray, share: np.ndarray, mixture: np.ndarray, nu: float, tol: float, max_iterations: int
) -> _Solution:
    """The weights on the rows of the attained point, and the bound on its relative gap.

    The smoothed sum F is convex, its minimizer z* is within 2 F(z) of z (the weights add up to one), and so
    F(z) - F(z*) <= ||grad F(z)|| 2 F(z). F is at most nu / 2 above the sum itself where rows are nearer than nu.
    """
    norms = inner.diagonal()
    gap = np.inf
    for _ in range(max_iterations):
        products = inner @ mixture
        distance = np.sqrt(np.maximum(norms - 2 * products + mixture @ products, 0))
        weights = share / np.maximum(distance, nu)
        next_mixture = weights / weights.sum()
        # the gradient is weights.sum() times the step
        step = mixture - next_mixture
        slope = float(weights.sum() * np.sqrt(max(step @ inner @ step, 0.0)))
        value = float(share @ distance)
        smoothing = nu / 2 if distance.min() < nu else 0.0
        gap = min(gap, 2 * slope + smoothing / max(value, nu))
        if 2 * slope <= tol:
            break
        mixture = next_mixture
    return _Solution(mixture, gap)


def _is_optimal(k: int, pair_distances: np.ndarray, inner: np.ndarray, share: np.ndarray) -> bool:
    """Whether row k alone has the least sum: the others pull less than its own weight (Vardi and Zhang, 2000).

    Args:
        inner: inner products around row k.
    """
    is_copy = pair_distances[k] == 0
    others = np.flatnonzero(~is_copy)
    if not len(others):
        return True
    reach = pair_distances[k, others]
    product, ratio = np.outer(reach, reach), reach[:, None] / reach[None, :]
    # the law of cosines is exact for near rows, and loses digits where one of them is far
    by_distances = (ratio + ratio.T - pair_distances[np.ix_(others, others)] ** 2 / product) / 2
    cosines = np.where(np.maximum(ratio, ratio.T) < 1e3, by_distances, inner[np.ix_(others, others)] / product)
    pull = share[others] @ np.clip(cosines, -1, 1) @ share[others]
    return bool(np.sqrt(max(pull, 0.0)) < share[is_copy].sum() * (1 - 1e-4))


def _median_reach(pair_distances: np.ndarray, share: np.ndarray) -> np.ndarray:
    """For each row the least distance within which half the weight of the others lies."""
    order = pair_distances.argsort(axis=1, kind="stable")
    others = share[order] * (order != np.arange(len(share))[:, None])
    reached = others.cumsum(axis=1) >= 0.5 * others.sum(axis=1, keepdims=True) * (1 - 1e-12)
    return np.take_along_axis(pair_distances, order, axis=1)[np.arange(len(share)), reached.argmax(axis=1)]


def _moved(inner: np.ndarray, k: int) -> np.ndarray:
    """Inner products around row k from those around another point."""
    return inner - inner[:, k : k + 1] - inner[k : k + 1, :] + inner[k, k]

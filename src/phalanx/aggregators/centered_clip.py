# SPDX-License-Identifier: Apache-2.0
"""A rule that averages rows clipped around the previous result."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.aggregators.kernels.gram import TINY, inner_products
from phalanx.aggregators.kernels.order import median
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.row_memory import load
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State

_NEAR = 1e-3  # share of the squared distances to the first centre below which float32 products are too coarse


@method("centered_clip", "aggregator")
class CenteredClip(Aggregator):
    """The centre v after steps v <- v + 1/n sum_i (x_i - v) min(1, tau / ||x_i - v||). Weights are ignored.

    It starts from the previous round's result, which is its state, and in the first round from the coordinate-wise
    median. All steps compute with n weights, from inner products of the rows minus the first centre.

    Shapes: (n, d) -> (1, d).
    Args:
        tau: clipping radius, > 0; a smaller one is safer and adapts more slowly. None takes the median distance of the
            rows to the current centre.
        iterations: number of steps, >= 1.
    Source: Karimireddy et al., Learning from History for Byzantine Robust Optimization, 2021, arXiv:2012.10333,
        Algorithm 1.
    Differs: the paper leaves tau and the first centre open.
    """

    tau: float | None = None
    iterations: int = 3

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        require(self.tau is None or self.tau > 0, f"centered_clip needs tau > 0, got tau={self.tau}")
        require(self.iterations >= 1, f"centered_clip needs iterations >= 1, got iterations={self.iterations}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        rows = stack.rows
        centre = state.get("centre", {}) if state else {}
        # an owner may get columns that were another one's before
        known = bool(centre) and all(name in centre for name in stack.layout.names)
        start = stack.layout.join(centre).to(rows) if known else load(centre, stack.layout, median(rows)).to(rows)
        weights, coarse = self._steps(inner_products(rows, start, columns=stack.columns))
        if coarse:
            weights, _ = self._steps(inner_products(rows, start, in_float64=True, columns=stack.columns))
        centre = _moved(start, torch.from_numpy(weights), rows)
        parts = stack.layout.split(centre)
        return stack.one(centre), {"centre": {name: part.clone() for name, part in parts.items()}}

    def _steps(self, inner: np.ndarray) -> tuple[np.ndarray, bool]:
        """The weights b of v = v0 + sum_i b_i (x_i - v0), and whether rounding was as large as a distance."""
        n = len(inner)
        norms = inner.diagonal()
        weights, coarse = np.zeros(n), False
        for _ in range(self.iterations):
            products = inner @ weights
            norm_sums = norms + weights @ products
            squared_distances = np.maximum(norm_sums - 2 * products, 0)
            coarse = coarse or bool(((squared_distances < _NEAR * norm_sums) | (norm_sums < TINY)).any())
            distances = np.sqrt(squared_distances)
            radius = float(np.median(distances)) if self.tau is None else self.tau
            steps = np.divide(radius, distances, out=np.ones(n), where=distances > radius) / n
            weights = weights * (1 - steps.sum()) + steps
        return weights, coarse


def _moved(start: Tensor, weights: Tensor, rows: Tensor) -> Tensor:
    """start + sum_i pull_i (rows_i - start) in the dtype of the rows."""
    remainder = start.to(accumulation_dtype(rows.dtype)) * (1 - float(weights.sum()))
    return (remainder + mix_one(weights, rows)).to(rows.dtype)

# SPDX-License-Identifier: Apache-2.0
"""The mean of rows that are clipped around the previous aggregate."""

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
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State

_NEAR = 1e-3  # share of the squared distances to the first centre below which float32 products are too coarse


@method("centered_clip", "aggregator")
class CenteredClip(Aggregator):
    """The centre v after steps v <- v + 1/n sum_i (x_i - v) min(1, tau / ||x_i - v||). Weights are ignored.

    It starts from the previous round's result, which is its state, and in the first round from the coordinate-wise
    median. All steps run on n weights, by the inner products of the rows less the first centre.

    Shapes: (n, d) -> (1, d).
    Args:
        tau: clipping radius, > 0; lower is safer and slower to follow. None takes the median of the rows' distances to
            the present centre.
        iterations: steps, >= 1.
    Source: Karimireddy et al., Learning from History for Byzantine Robust Optimization, 2021, arXiv:2012.10333,
        Algorithm 1.
    Differs: the paper leaves tau and the first centre open.
    """

    tau: float | None = None
    iterations: int = 3

    requirement: ClassVar[str] = "n > 2f"

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        require(self.tau is None or self.tau > 0, f"centered_clip needs tau > 0, got tau={self.tau}")
        require(self.iterations >= 1, f"centered_clip needs iterations >= 1, got iterations={self.iterations}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        rows = stack.rows
        start = stack.layout.join(state["centre"]).to(rows) if state else median(rows)
        pull, coarse = self._steps(inner_products(rows, start))
        if coarse:
            pull, _ = self._steps(inner_products(rows, start, wide=True))
        centre = _moved(start, torch.from_numpy(pull), rows)
        parts = stack.layout.split(centre)
        return stack.one(centre), {"centre": {name: part.clone() for name, part in parts.items()}}

    def _steps(self, inner: np.ndarray) -> tuple[np.ndarray, bool]:
        """The weights b of v = v0 + sum_i b_i (x_i - v0), and whether a distance drowned in the rounding."""
        n = len(inner)
        norms = inner.diagonal()
        pull, coarse = np.zeros(n), False
        for _ in range(self.iterations):
            toward = inner @ pull
            both = norms + pull @ toward
            squared = np.maximum(both - 2 * toward, 0)
            coarse = coarse or bool(((squared < _NEAR * both) | (both < TINY)).any())
            apart = np.sqrt(squared)
            radius = float(np.median(apart)) if self.tau is None else self.tau
            share = np.divide(radius, apart, out=np.ones(n), where=apart > radius) / n
            pull = pull * (1 - share.sum()) + share
        return pull, coarse


def _moved(start: Tensor, pull: Tensor, rows: Tensor) -> Tensor:
    """start + sum_i pull_i (rows_i - start) in the dtype of the rows."""
    kept = start.to(accumulation_dtype(rows.dtype)) * (1 - float(pull.sum()))
    return (kept + mix_one(pull, rows)).to(rows.dtype)

# SPDX-License-Identifier: Apache-2.0
"""A rule that turns the mean around in the coordinates whose signs few rows agree on."""

from __future__ import annotations

import torch

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State

_COLUMNS = 1 << 16


@method("robust_lr", "aggregator")
class RobustLr(Aggregator):
    """Robust learning rate: the weighted mean, times -1 where |sum_i sign(x_i)| is below a threshold.

    Few attackers move a coordinate only where honest rows do not agree on its sign; there the step goes the other way.
    Installed values, such as BatchNorm statistics, are averaged only.

    Shapes: (n, d) -> (1, d).
    Args:
        threshold: >= 0; 0 is the mean. The paper takes a number above the number of attackers.
    Source: Ozdayi et al., Defending against backdoors in federated learning with robust learning rate, 2021,
        arXiv:2007.03767, equation 4. As published.
    """

    threshold: float

    def validate(self) -> None:
        require(
            0 <= self.threshold < float("inf"),
            f"robust_lr needs a finite threshold >= 0, got threshold={self.threshold}",
        )

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        row = mix_one(stack.weights / stack.weights.sum(), stack.rows)
        for start in range(0, stack.layout.stepped, _COLUMNS):
            piece = slice(start, min(start + _COLUMNS, stack.layout.stepped))
            agreement = torch.sign(stack.rows[:, piece]).sum(dim=0, dtype=torch.float64).abs()
            row[piece] = torch.where(agreement < self.threshold, -row[piece], row[piece])
        return stack.one(row), {}

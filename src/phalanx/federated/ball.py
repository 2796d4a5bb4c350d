# SPDX-License-Identifier: Apache-2.0
"""A ball around the global model that a client's weights do not leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from phalanx.core.expression import Expression, method, require


@method("ball", "constraint")
class Ball(Expression):
    """Weights within a distance of those that the round began with; outside, the nearest point of the ball.

    In the l2 norm that is w0 + radius (w - w0) / ||w - w0||, in the largest magnitude a cut of every entry. An attacker
    who knows a norm test stays under it so.

    Args:
        radius: > 0.
        every: optimizer steps between two projections, >= 1; the last step of an epoch is always followed by one.
        decay: factor on the radius after every round of the phase, in (0, 1].
        norm: "l2" or "linf".
        each: one ball for the whole "model", or one for each "tensor".
    Source: Wang et al., Attack of the Tails: Yes, You Really Can Backdoor Federated Learning, 2020, arXiv:2007.05084,
        section 3, PGD attack.
    """

    radius: float
    every: int = 10
    decay: float = 1.0
    norm: Literal["l2", "linf"] = "l2"
    each: Literal["model", "tensor"] = "model"

    def validate(self) -> None:
        require(0 < self.radius < math.inf, f"ball needs a finite radius > 0, got radius={self.radius}")
        require(self.every >= 1, f"ball needs every >= 1 step, got every={self.every}")
        require(0 < self.decay <= 1, f"ball needs decay in (0, 1], got decay={self.decay}")

    @torch.no_grad()
    def project(self, weights: Sequence[Tensor], centre: Sequence[Tensor], round_index: int) -> None:
        """Moves the weights into the ball of round `at`, in place; what is within stays to the bit."""
        radius = self.radius * self.decay**round_index
        if self.norm == "linf":
            for w, c in zip(weights, centre, strict=True):
                if bool(((w - c).abs() > radius).any()):
                    w.copy_(torch.clamp(w, c - radius, c + radius))
            return
        moves = [w.double() - c.double() for w, c in zip(weights, centre, strict=True)]
        lengths = [float(torch.linalg.vector_norm(move)) for move in moves]
        whole = math.sqrt(sum(length**2 for length in lengths))
        for w, c, move, length in zip(weights, centre, moves, lengths, strict=True):
            far = whole if self.each == "model" else length
            if far > radius:
                w.copy_(c.double() + move * (radius / far))

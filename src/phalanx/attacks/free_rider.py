# SPDX-License-Identifier: Apache-2.0
"""A worker that computes nothing and sends a row that looks like work."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("free_rider", "attack")
class FreeRider(Attack):
    """A Byzantine worker sends no change at all, or noise that becomes smaller as training goes on.

    In round t = 1, 2, ... an entry has the standard deviation std t^-decay.

    Shapes: (k, d) -> (k, d).
    Args:
        std: of an entry in the first round, >= 0; 0 is the plain free-rider.
        decay: >= 0; how fast the noise becomes smaller, as honest changes do.
    Source: Fraboni et al., Free-rider Attacks on Model Aggregation in Federated Learning, 2021, arXiv:2006.11901,
        sections 3.2 (plain) and 3.3 (disguised by additive noise). As published.
    """

    std: float = 0.0
    decay: float = 1.0

    def validate(self) -> None:
        for name in ("std", "decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"free_rider needs a finite {name} >= 0, got {name}={value}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        forged = torch.zeros(stack.rows.shape)
        if self.std:
            size = self.std * (round.index + 1) ** -self.decay
            for i, source in enumerate(stack.sources):
                forged[i].normal_(0.0, size, generator=round.rng(source[0]))
        return forged.to(stack.rows.device), state

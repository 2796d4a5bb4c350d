# SPDX-License-Identifier: Apache-2.0
"""Model replacement: the attacker scales its update until the mean is the attacker's model."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("replacement", "attack")
class Replacement(Attack):
    """Byzantine workers send their rows times `boost`, so that FedAvg installs the attacker's model.

    This holds for a boost of n_S / n_i if honest updates are small and the gate trusts claimed weights,
    `gate(weights="trusted")`; a gate that bounds weights weakens the attack. Several attackers in a round share the
    factor, as if they were one worker with the examples of all.

    Args:
        boost: > 0; None takes the examples of all workers of the round over those of its attackers.
    Source: Bagdasaryan et al., How To Backdoor Federated Learning, 2018, arXiv:1807.00459, equation 3; Wang et al.,
        2020, arXiv:2007.05084, section 3.
    """

    directions_only: ClassVar[bool] = True

    boost: float | None = None

    @property
    def asks_all(self) -> bool:
        return self.boost is None

    def validate(self) -> None:
        ok = self.boost is None or 0 < self.boost < float("inf")
        require(ok, f"replacement needs a finite boost > 0, got boost={self.boost}")

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        if self.boost is not None or not round.byzantine:
            return super().__call__(stack, state, round)
        if stack.received:
            weights, sources = stack.weights, stack.sources
        else:
            # every process calls it, also one without an attacker
            weights = round.collective.all_gather(stack.weights.reshape(-1, 1)).flatten()
            sources = [(worker,) for worker in round.world.workers]
        byzantine = torch.tensor([set(source) <= round.byzantine for source in sources])
        factor = float(weights.sum() / weights[byzantine].sum()) if bool(byzantine.any()) else 1.0
        return Replacement(factor)(stack, state, round)

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert self.boost is not None
        return stack.rows * self.boost, state

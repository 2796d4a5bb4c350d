# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH: train at full rank for a while, factorize, and go on."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from phalanx.expression import method, require
from phalanx.finish import Parameters
from phalanx.lowrank.carry import Moments, carried_state
from phalanx.lowrank.decay import factors_of, frobenius_decay
from phalanx.lowrank.factorize import apply, factorize
from phalanx.lowrank.plan import Plan
from phalanx.lowrank.rules import plan
from phalanx.stage import State
from phalanx.surgery import Surgery


@method("pufferfish", "surgery")
class Pufferfish(Surgery):
    """Full rank for the first part of a phase, then every large matrix is the product of two thin ones.

    The learning rate's schedule, BatchNorm statistics and biases go on as they are; the scheme's memories begin anew,
    because rows have another layout from then on.

    Args:
        ratio: of the rank to the full rank, in (0, 1].
        warmup: share of the phase's rounds at full rank, in [0, 1); 0 factorizes the weights as they were drawn, which
            is training from scratch with the spectrum of the usual initialisation.
        first: the first K - 1 layers stay full, as in `phalanx.plan`.
        keep: layers, or patterns, that stay full.
        classifier: the last fully connected layer stays full.
        moments: what becomes of the optimizer's moments, as in `phalanx.carry`.
        decay: "factors" decays u and v as any weight; "product" decays v u instead, as `phalanx.frobenius_decay`.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, Algorithm 2. Differs: moments are carried, where the
        published code starts a fresh optimizer.
    """

    ratio: float = 0.25
    warmup: float = 0.25
    first: int = 1
    keep: tuple[str, ...] = ()
    classifier: bool = True
    moments: Moments = "step"
    decay: Literal["factors", "product"] = "factors"

    def validate(self) -> None:
        require(0 < self.ratio <= 1, f"pufferfish needs a ratio in (0, 1], got ratio={self.ratio}")
        require(0 <= self.warmup < 1, f"pufferfish needs a warmup in [0, 1), got warmup={self.warmup}")
        require(self.first >= 1, f"pufferfish needs first >= 1, got first={self.first}")

    def watches(self, at: int, rounds: int) -> bool:
        return at == int(self.warmup * rounds)

    def operate(self, model: nn.Module, at: int, rounds: int, memory: State) -> tuple[nn.Module | None, State]:
        chosen = plan(model, self.ratio, self.first, self.keep, classifier=self.classifier)
        return factorize(model, chosen), {"shape": {"plan": chosen.to_yaml()}}

    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        return apply(model, Plan.from_yaml(shape["plan"]), None)

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        return dict(carried_state(optimizer, old, new, self.moments))

    def groups(self, model: nn.Module) -> Parameters:
        trained = [p for p in model.parameters() if p.requires_grad]
        factors = {id(p) for p in factors_of(model)}
        if self.decay == "factors" or not factors:
            return trained
        return [
            {"params": [p for p in trained if id(p) not in factors]},
            {"params": [p for p in trained if id(p) in factors], "weight_decay": 0.0},
        ]

    def before_step(self, model: nn.Module, memory: State, weight_decay: float) -> None:
        if self.decay == "product" and weight_decay:
            frobenius_decay(model, weight_decay)

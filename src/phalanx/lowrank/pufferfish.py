# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH: train at full rank for a while, factorize, and continue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from phalanx.core.expression import method, require
from phalanx.core.surgery import Parameters, Surgery
from phalanx.core.trees import State
from phalanx.lowrank.adapt import adapt
from phalanx.lowrank.decay import factors_of, frobenius_decay
from phalanx.lowrank.factorize import apply, factorize
from phalanx.lowrank.merge import applied
from phalanx.lowrank.optimizer_state import Moments, transferred_state
from phalanx.lowrank.plan import Plan
from phalanx.lowrank.planner import Rank, plan
from phalanx.lowrank.stable_rank import ranks_converged, stable_ranks

LOOKS = 40  # measurements of the ranks in a phase
LATEST = 0.5  # share of a phase after which the warm-up ends even if the ranks have not converged


@method("pufferfish", "surgery")
class Pufferfish(Surgery):
    """Full rank for the first part of a phase, then every large matrix becomes the product of two thin ones.

    The schedule of the learning rate, BatchNorm statistics and biases continue unchanged. The memories of the scheme
    start again, because rows have another layout from then on.

    Args:
        ratio: ratio of the rank to the full rank, in (0, 1]; with rank="auto" it sets the budget of parameters, and
            None lets the spectra decide the size as well.
        warmup: share of the phase's rounds at full rank, in [0, 1); 0 is low rank from the start. "auto" measures the
            stable ranks 40 times a phase and ends the warm-up when they have converged, or after half of the rounds.
        rank: "ratio" or "auto", as in `phalanx.lowrank.plan`; "auto" without a ratio takes the stable ranks at the
            phase's start where they were watched, and the energy otherwise.
        first: the first K - 1 layers stay full, as in `phalanx.lowrank.plan`.
        keep: names of layers, or patterns, that stay full.
        start: "spectrum" begins with the factors of the present weights, also with warmup=0; "drawn" begins with random
            factors, initialised as PyTorch initialises two layers, as the published code does with warmup=0.
        classifier: whether the last fully connected layer stays full.
        moments: how the optimizer's moments are transferred, as in `phalanx.lowrank.transfer_optimizer`.
        decay: "factors" decays u and v as any weight; "product" decays v u, as `phalanx.lowrank.frobenius_decay` does.
        adapt: shares of the phase's rounds, after the warm-up, at which `phalanx.lowrank.adapt` lowers the ranks.
        energy: share of the energy of v u that it keeps, in (0, 1].
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, Algorithm 2; for "auto" Wang et al., Cuttlefish, 2023,
        arXiv:2305.02538. Differs: moments are transferred, where the published code starts a new optimizer.
    """

    ratio: float | None = 0.25
    warmup: float | Literal["auto"] = 0.25
    rank: Rank = "ratio"
    first: int | None = None
    keep: tuple[str, ...] = ()
    start: Literal["spectrum", "drawn"] = "spectrum"
    classifier: bool = True
    moments: Moments = "step"
    decay: Literal["factors", "product"] = "factors"
    adapt: tuple[float, ...] = ()
    energy: float = 0.999

    def validate(self) -> None:
        require(self.ratio is None or 0 < self.ratio <= 1, f"pufferfish needs a ratio in (0, 1], got {self.ratio}")
        sized = self.ratio is not None or self.rank == "auto"
        require(sized, 'pufferfish needs a ratio, or rank="auto" to do without')
        share = 0.0 if self.warmup == "auto" else self.warmup
        require(0 <= share < 1, f"pufferfish needs a warmup in [0, 1) or 'auto', got warmup={self.warmup}")
        require(self.first is None or self.first >= 1, f"pufferfish needs first >= 1, got first={self.first}")
        forgets = self.start == "drawn" and self.warmup != 0
        require(not forgets, f"pufferfish with drawn factors forgets a warm-up; set warmup=0, not {self.warmup!r}")
        least = LATEST if self.warmup == "auto" else share
        for share in self.adapt:
            require(
                least < share < 1, f"pufferfish adapts in shares of the phase in ({least:g}, 1), got adapt={self.adapt}"
            )
        require(0 < self.energy <= 1, f"pufferfish needs an energy in (0, 1], got energy={self.energy}")

    def watches(self, round_index: int, rounds: int) -> bool:
        if round_index in self._adapts(rounds):
            return True
        if self.warmup == "auto":
            return round_index % max(1, rounds // LOOKS) == 0 and round_index <= self._latest(rounds)
        return round_index == int(self.warmup * rounds)

    def operate(
        self, model: nn.Module, round_index: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        if round_index in self._adapts(rounds):
            low = adapt(model, self.energy)
            shape = {"plan": applied(low).to_yaml()}
            # if no rank fell, the model and the optimizer stay as they are
            return (None if shape == memory.get("shape") else low), {**memory, "shape": shape}
        if "shape" in memory:
            return None, memory
        if self.warmup == "auto":
            memory = self._look(model, memory)
            waits = not ranks_converged(memory["looks"]) and round_index + max(1, rounds // LOOKS) <= self._latest(
                rounds
            )
            if waits:
                return None, memory
        chosen = plan(
            model, self.ratio, self.first, self.keep, rank=self.rank, classifier=self.classifier, **self._at(memory)
        )
        if all(entry.rank is None for entry in chosen):
            return None, {"shape": {"plan": applied(model).to_yaml()}}
        low = factorize(model, chosen) if self.start == "spectrum" else apply(model, chosen, RandomFactors(rng))
        return low, {"shape": {"plan": applied(low).to_yaml()}}

    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        return apply(model, Plan.from_yaml(shape["plan"]), None)

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        return dict(transferred_state(optimizer, old, new, self.moments))

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

    def _adapts(self, rounds: int) -> list[int]:
        return [int(share * rounds) for share in self.adapt]

    @staticmethod
    def _latest(rounds: int) -> int:
        return int(LATEST * rounds)

    def _look(self, model: nn.Module, memory: State) -> State:
        """The memory with one more measurement of the stable ranks of the weights that would become low rank."""
        likely = plan(model, self.ratio or 1 / 4, self.first, self.keep, classifier=self.classifier)
        return {**memory, "looks": [*memory.get("looks", []), stable_ranks(model, likely)]}

    def _at(self, memory: State) -> dict[str, Any]:
        watched = self.ratio is None and self.rank == "auto" and memory.get("looks")
        return {"initial": memory["looks"][0]} if watched else {}


@dataclass(frozen=True)
class RandomFactors:
    """Random factors, uniform within 1 / sqrt(inputs) as PyTorch initialises two layers; the matrices do not matter.

    Every call continues the stream of random numbers.

    Shapes: (copies, rows, columns) -> v (copies, rows, rank), u (copies, rank, columns).
    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv:1502.01852, as in `nn.Linear` and `nn.Conv2d`.
    """

    rng: torch.Generator

    def __call__(self, matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        copies, rows, columns = matrices.shape
        return self._uniform(matrices, copies, rows, rank), self._uniform(matrices, copies, rank, columns)

    def _uniform(self, like: Tensor, copies: int, rows: int, inputs: int) -> Tensor:
        # drawn on the CPU, because generators of different devices give different numbers
        return ((2 * torch.rand(copies, rows, inputs, generator=self.rng) - 1) * inputs**-0.5).to(like)

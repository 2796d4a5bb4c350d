# SPDX-License-Identifier: Apache-2.0
"""Optimizers of a phase: what they do with the aggregated row of a round, and their learning rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from phalanx.core._torch_private import eager
from phalanx.core.expression import Expression, method, require
from phalanx.core.surgery import Parameters


class Schedule(Expression, ABC):
    """A factor on the learning rate, as a function of the round within its phase."""

    @abstractmethod
    def factor(self, index: int, rounds: int) -> float:
        """The factor in round `index` of `rounds`."""


@method("decay", "schedule")
class Decay(Schedule):
    """Multiplies by `by` after every `every` rounds: by ** (t // every)."""

    by: float
    every: int = 1

    def validate(self) -> None:
        require(self.by > 0, f"decay needs by > 0, got by={self.by}")
        require(self.every >= 1, f"decay needs every >= 1 round, got every={self.every}")

    def factor(self, index: int, rounds: int) -> float:
        return self.by ** (index // self.every)


@method("milestones", "schedule")
class Milestones(Schedule):
    """Multiplies by `by` at each of the given shares of the phase, in (0, 1)."""

    at: tuple[float, ...] = (0.5, 0.75)
    by: float = 0.1

    def validate(self) -> None:
        require(all(0 < a < 1 for a in self.at), f"milestones needs shares of the phase in (0, 1), got at={self.at}")

    def factor(self, index: int, rounds: int) -> float:
        return self.by ** sum(index >= a * rounds for a in self.at)


@method("cosine", "schedule")
class Cosine(Schedule):
    """Half a cosine from 1 down to 0 over the phase, after `warmup` rounds of linear increase."""

    warmup: int = 0

    def factor(self, index: int, rounds: int) -> float:
        if index < self.warmup:
            return (index + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (index - self.warmup) / max(1, rounds - self.warmup)))


class ServerOptimizer(Expression, ABC):
    """Makes the optimizer of a phase and gives its learning rate in each round.

    Class attribute `installs`: the row holds new values of the weights, not a direction of a step.
    """

    installs: ClassVar[bool] = False

    lr: float
    weight_decay: float
    schedule: Schedule | None

    @abstractmethod
    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        """A new optimizer for parameters, or for groups of them as in PyTorch's optimizers."""

    def rate(self, index: int, rounds: int) -> float:
        """The learning rate in round `index` of a phase of `rounds`."""
        return self.lr * (self.schedule.factor(index, rounds) if self.schedule else 1.0)


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer as a tree that shares its tensors; `set_moments` is the inverse."""
    return {str(number): state for number, state in optimizer.state_dict()["state"].items()}


def set_moments(optimizer: torch.optim.Optimizer, tree: Mapping[str, Any]) -> None:
    """Loads moments into a new optimizer, which takes over their tensors."""
    state = {int(number): moments for number, moments in tree.items()}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


@method("sgd", "optimizer")
class Sgd(ServerOptimizer):
    """A step of torch.optim.SGD along the aggregated row.

    Args:
        lr: learning rate, > 0.
        momentum: at the server, in [0, 1).
        weight_decay: l2 penalty, >= 0.
        schedule: factor on lr; None keeps it constant.
    """

    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    schedule: Schedule | None = None

    def validate(self) -> None:
        _check_rates(self)
        require(0 <= self.momentum < 1, f"sgd needs momentum in [0, 1), got momentum={self.momentum}")
        require(self.momentum > 0 or not self.nesterov, "sgd needs momentum > 0 for nesterov=True")

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return eager(torch.optim.SGD)(
            parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )


@method("adam", "optimizer")
class Adam(ServerOptimizer):
    """A step of torch.optim.Adam along the aggregated row.

    Args:
        lr: learning rate, > 0.
        weight_decay: l2 penalty, >= 0.
        schedule: factor on lr; None keeps it constant.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    schedule: Schedule | None = None

    def validate(self) -> None:
        _check_adaptive(self)

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return eager(torch.optim.Adam)(parameters, self.lr, (self.beta1, self.beta2), weight_decay=self.weight_decay)


@method("adamw", "optimizer")
class AdamW(ServerOptimizer):
    """A step of torch.optim.AdamW along the aggregated row; weight decay is not part of the gradient.

    Args:
        lr: learning rate, > 0.
        weight_decay: share of a weight taken away in a step of lr = 1, >= 0.
        schedule: factor on lr; None keeps it constant.
    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2017, arXiv:1711.05101, Algorithm 2.
    """

    lr: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    schedule: Schedule | None = None

    def validate(self) -> None:
        _check_adaptive(self)

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return eager(torch.optim.AdamW)(parameters, self.lr, (self.beta1, self.beta2), weight_decay=self.weight_decay)


@method("assign_weights", "optimizer")
class AssignWeights(ServerOptimizer):
    """Assigns the aggregated row to the weights; the model grows where the row's layers have grown."""

    installs: ClassVar[bool] = True
    lr: ClassVar[float] = 1.0  # type: ignore[assignment]
    weight_decay: ClassVar[float] = 0.0  # type: ignore[assignment]
    schedule: ClassVar[None] = None  # type: ignore[assignment]

    def build(self, parameters: Parameters) -> torch.optim.Optimizer:
        return eager(torch.optim.SGD)(parameters, 1.0)


def _check_rates(optimizer: ServerOptimizer) -> None:
    name, lr, decay = optimizer.expression_name, optimizer.lr, optimizer.weight_decay
    require(lr > 0, f"{name} needs lr > 0, got lr={lr}")
    require(decay >= 0, f"{name} needs weight_decay >= 0, got weight_decay={decay}")


def _check_adaptive(optimizer: Adam | AdamW) -> None:
    _check_rates(optimizer)
    name, betas = optimizer.expression_name, (optimizer.beta1, optimizer.beta2)
    require(all(0 <= beta < 1 for beta in betas), f"{name} needs betas in [0, 1), got {betas[0]}, {betas[1]}")


sgd, adam, adamw, assign_weights = Sgd, Adam, AdamW, AssignWeights
decay, milestones, cosine = Decay, Milestones, Cosine

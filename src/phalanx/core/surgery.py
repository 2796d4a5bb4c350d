# SPDX-License-Identifier: Apache-2.0
"""Another network takes the model's place in the middle of a phase, and training goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from phalanx.core.expression import Expression
from phalanx.core.trees import State

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


class Surgery(Expression, ABC):
    """Decides between two rounds of a phase whether the model becomes another one, and makes it.

    A surgery keeps nothing: what it remembers is a memory of its phase, nested dictionaries as in the state of a stage.
    What stands in it under "shape" is small and enough to build the network of the present shape; it travels to
    processes that have to follow. One process operates; the others are given its weights.
    """

    @abstractmethod
    def watches(self, at: int, rounds: int) -> bool:
        """Whether it looks at the model before round `at` of `rounds`; the same in every process."""

    @abstractmethod
    def operate(
        self, model: nn.Module, at: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        """The network that takes this one's place, if any, and the memory. The given one stays as it is.

        Args:
            rng: a stream of this round's own.
        """

    @abstractmethod
    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        """A network of the shape that was remembered, its weights to be filled in; from that before the phase."""

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        """The optimizer's state for the parameters of the new network; none makes it a fresh one."""
        return {}

    def groups(self, model: nn.Module) -> Parameters:
        """The trained parameters as the optimizer of the phase takes them."""
        return [p for p in model.parameters() if p.requires_grad]

    def before_step(self, model: nn.Module, memory: State, weight_decay: float) -> None:
        """What is added to the gradients before every step of the phase."""

    def after_step(self, model: nn.Module, memory: State) -> None:
        """What is done to the weights after every step, also in the phases behind this one."""

    def zeros(self, model: nn.Module, memory: State) -> int:
        """How many trained parameters it holds at zero; those of an earlier phase are among them."""
        return 0

    def clock(self, at: int, rounds: int) -> tuple[int, int]:
        """The round as the learning rate's schedule sees it, and of how many."""
        return at, rounds

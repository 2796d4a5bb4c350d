# SPDX-License-Identifier: Apache-2.0
"""Surgery: another network replaces the model in the middle of a phase, and training goes on."""

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

    A surgery object has no state. What it remembers is in the memory of its phase: nested dictionaries, as in the state
    of a stage. The entry "shape" is small, and enough to build a network of the present shape; it is sent to the other
    processes. One process operates, and sends its weights to the others.
    """

    @abstractmethod
    def watches(self, round_index: int, rounds: int) -> bool:
        """Whether it looks at the model before a round of a phase of `rounds`; the same in every process."""

    @abstractmethod
    def operate(
        self, model: nn.Module, round_index: int, rounds: int, memory: State, rng: torch.Generator
    ) -> tuple[nn.Module | None, State]:
        """The network that replaces the model, or None, and the next memory; the model itself is not changed.

        Args:
            rng: a generator for this round.
        """

    @abstractmethod
    def rebuild(self, model: nn.Module, shape: State) -> nn.Module:
        """A network of the remembered shape, built from the model before the phase; its weights are loaded later."""

    def carried(
        self, optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module, memory: State
    ) -> dict[Any, dict[str, Any]]:
        """The optimizer's state for the parameters of the new network; an empty one starts afresh."""
        return {}

    def groups(self, model: nn.Module) -> Parameters:
        """The trained parameters, in the groups of the phase's optimizer."""
        return [p for p in model.parameters() if p.requires_grad]

    def before_step(self, model: nn.Module, memory: State, weight_decay: float) -> None:
        """Changes the gradients before every step of the phase."""

    def after_step(self, model: nn.Module, memory: State) -> None:
        """Changes the weights after every step of this phase and of the later ones."""

    def zeros(self, model: nn.Module, memory: State) -> int:
        """The number of trained parameters held at zero, those of earlier phases included."""
        return 0

    def clock(self, round_index: int, rounds: int) -> tuple[int, int]:
        """The round, and the number of rounds, that the schedule of the learning rate sees."""
        return round_index, rounds

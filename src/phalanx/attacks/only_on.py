# SPDX-License-Identifier: Apache-2.0
"""An attack that another attack makes on one part of the row."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from phalanx.core.attack import Attack, Part, View
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("only_on", "attack")
class OnlyOn(Attack):
    """Makes an attack on directions only, or on installed values only, such as BatchNorm statistics.

    The rest of the row stays honest, as does a whole row without installed values if these are attacked.

    Shapes: (k, d) -> (k, d).
    Args:
        attack: what Byzantine workers do to whole rows.
        at: "directions", or "installed" for values that replace those of the model.
    Raises:
        ValueError: the attack is one on a part of rows already.
    """

    attack: Attack
    at: Literal["directions", "installed"] = "directions"

    def validate(self) -> None:
        part = self.attack.part
        require(part == "row", f"only_on takes an attack on whole rows, and {self.attack!r} aims at {part} by itself")

    @property
    def asks_all(self) -> bool:
        return self.attack.asks_all

    @property
    def part(self) -> Part:
        return self.at

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        return self.attack.forge(stack, view, state, round)

    def look(self, stack: Stack, round: Round) -> View | None:
        return self.attack.look(stack, round)

# SPDX-License-Identifier: Apache-2.0
"""Another attack on a part of the row."""

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
    """The attack on directions alone, or on installed values alone such as BatchNorm statistics; the rest stays honest.

    A row without installed values stays as it is where they are aimed at.

    Shapes: (k, d) -> (k, d).
    Args:
        attack: what Byzantine workers do to whole rows.
        at: "directions", or "installed" for values that take the place of the model's.
    Raises:
        ValueError: an attack that aims at a part by itself.
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

    def forge(
        self, own: Tensor, workers: tuple[int, ...], view: View | None, state: State, round: Round
    ) -> tuple[Tensor, State]:
        return self.attack.forge(own, workers, view, state, round)

    def look(self, stack: Stack, round: Round) -> View | None:
        return self.attack.look(stack, round)

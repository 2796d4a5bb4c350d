# SPDX-License-Identifier: Apache-2.0
"""An attack that sends the negative of the row, scaled up."""

from __future__ import annotations

from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("reverse", "attack")
class Reverse(Attack):
    """A Byzantine worker sends -c times the row it computed.

    Shapes: (k, d) -> (k, d).
    Args:
        c: factor; 100 as in the dissertation, 1 hides among honest norms.
    Source: Wang, Toward Robust and Communication Efficient Distributed Machine Learning, 2021, section 6.3.
        As published.
    """

    c: float = 100.0

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        return -self.c * stack.rows, state

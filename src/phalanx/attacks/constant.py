# SPDX-License-Identifier: Apache-2.0
"""An attack that sends one number in every entry."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("constant", "attack")
class Constant(Attack):
    """A Byzantine worker sends a row whose entries are all `value`.

    Shapes: (k, d) -> (k, d).
    Args:
        value: -100 as in the dissertation, which takes -1 against sign votes; 1e30 overflows a rule without a gate.
    Source: Wang, Toward Robust and Communication Efficient Distributed Machine Learning, 2021, section 6.3.
        As published.
    """

    value: float = -100.0

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        return torch.full_like(stack.rows, self.value, dtype=torch.float64), state

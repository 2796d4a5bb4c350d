# SPDX-License-Identifier: Apache-2.0
"""An attack that sends NaN in every entry."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("nan", "attack")
class Nan(Attack):
    """A Byzantine worker sends NaN in every entry: the cheapest way to stop a run without a gate.

    Shapes: (k, d) -> (k, d).
    Source: folklore; an overflow or a broken accelerator sends it without intent.
    """

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        return torch.full_like(stack.rows, torch.nan), state

# SPDX-License-Identifier: Apache-2.0
"""An attack that sends noise in place of a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("gaussian", "attack")
class Gaussian(Attack):
    """A Byzantine worker sends independent Gaussian noise of mean 0 instead of its row.

    Shapes: (k, d) -> (k, d).
    Args:
        std: > 0, standard deviation of an entry; a higher one does more harm to a mean and is easier to detect.
    Source: Blanchard et al., Machine learning with adversaries, 2017, arXiv:1703.02757,
        experiments. As published.
    """

    std: float = 200.0

    def validate(self) -> None:
        require(0 < self.std < float("inf"), f"gaussian needs a finite std > 0, got std={self.std}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        noise = torch.empty(stack.rows.shape)
        for i, source in enumerate(stack.sources):
            noise[i].normal_(0.0, self.std, generator=round.rng(source[0]))
        return noise.to(stack.rows.device), state

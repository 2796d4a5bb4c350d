# SPDX-License-Identifier: Apache-2.0
"""An attack that sends the negated mean of the honest rows."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("ipm", "attack")
class Ipm(Attack):
    """All Byzantine workers send -epsilon times the mean of the honest rows: inner product manipulation.

    Shapes: (k, d) -> (k, d).
    Args:
        epsilon: 0.1 stays near the origin and misleads median and Krum; above (n - f) / f the mean changes its sign.
    Source: Xie et al., Fall of empires, 2019, arXiv:1903.03936. As published.
    """

    omniscient: ClassVar[bool] = True

    epsilon: float = 0.1

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        honest = view.honest
        return -self.epsilon * honest.to(accumulation_dtype(honest.dtype)).mean(dim=0), state

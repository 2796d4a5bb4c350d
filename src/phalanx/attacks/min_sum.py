# SPDX-License-Identifier: Apache-2.0
"""An attack whose row is no farther from the honest rows together than one honest row is from the others."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from phalanx.aggregators.kernels.gram import distances
from phalanx.attacks.min_max import Direction, finite_rows, hidden_row
from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("min_sum", "attack")
class MinSum(Attack):
    """All Byzantine workers send mean + g p, with the largest g at which the row has no outlier's sum of distances.

    The mean is that of the honest rows, p points away from it, and the sum of the row's squared distances from the
    honest rows is at most the largest such sum of an honest row.

    Shapes: (k, d) -> (k, d).
    Args:
        direction: as that of `min_max`.
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, section IV. Differs: g is the root of the
        quadratic inequality, where the paper searches for it by halving steps.
    """

    omniscient: ClassVar[bool] = True
    runs_on: ClassVar[Scope] = "vector"

    direction: Direction = "std"

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        honest = finite_rows(view)
        limit = distances(honest).squared.sum(axis=1).max(initial=0.0)
        return hidden_row(honest, self.direction, np.array([limit]), each=False), state

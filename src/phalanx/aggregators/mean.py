# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, which a single Byzantine row can move anywhere."""

from __future__ import annotations

from phalanx.aggregators.kernels.columns import mix_one
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("mean", "aggregator")
class Mean(Aggregator):
    """The mean of the rows, weighted by the examples behind each: sum_i w_i x_i / sum_i w_i.

    Shapes: (n, d) -> (1, d).
    """

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        share = stack.weights / stack.weights.sum()
        return stack.one(mix_one(share, stack.rows)), {}

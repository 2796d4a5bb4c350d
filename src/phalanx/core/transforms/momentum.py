# SPDX-License-Identifier: Apache-2.0
"""A transform that averages rows over rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import cast
from phalanx.core.round import Rng
from phalanx.core.row_memory import load, store
from phalanx.core.stage import RowStage
from phalanx.core.trees import State


@method("momentum", "transform")
class Momentum(RowStage):
    """Each worker's moving average of its rows: m = (1 - beta) g + beta m, begun with m = g.

    It multiplies the variance of honest rows by (1 - beta) / (1 + beta), so that an attack can hide less in it.

    Shapes: (k, d) -> (k, d).
    Args:
        beta: share of the past, in [0, 1); higher is smoother and slower.
    Source: Karimireddy et al., Learning from history for Byzantine robust optimization, 2021, arXiv:2012.10333,
        Algorithm 2. Differs: an entry that is NaN or Inf comes out as NaN or Inf, and does not change the memory.
    """

    beta: float = 0.9

    @property
    def remembers(self) -> bool:
        return True

    def validate(self) -> None:
        require(0 <= self.beta < 1, f"momentum needs 0 <= beta < 1, got beta={self.beta}")

    def row(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Tensor, State]:
        memory = state.get("momentum", {})
        old = load(memory, layout, row)
        # the weights add up to one, and two equal terms give exactly themselves
        new = torch.lerp(row.to(old), old, self.beta)
        return cast(new, row.dtype), {"momentum": {**memory, **store(new, old, layout)}}

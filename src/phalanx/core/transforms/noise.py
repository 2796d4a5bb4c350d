# SPDX-License-Identifier: Apache-2.0
"""A transform that adds noise to rows."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.pieces import seed_of
from phalanx.core.precision import accumulation_dtype, cast
from phalanx.core.round import Rng, make_generator
from phalanx.core.stage import Kept, RowStage
from phalanx.core.trees import State


@method("noise", "transform")
class Noise(RowStage):
    """Each row plus independent Gaussian noise of standard deviation `std` in every entry.

    Shapes: (k, d) -> (k, d).
    Args:
        std: >= 0, in the unit of an entry; after clip(C), std = sigma C is the Gaussian mechanism for one worker's row.
    Source: Abadi et al., Deep learning with differential privacy, 2016, arXiv:1607.00133, Algorithm 1.
        Differs: every worker adds its own noise to its row, the server none; no privacy accountant.
    """

    std: float

    @property
    def keeps(self) -> Kept:
        return "nothing"

    def validate(self) -> None:
        require(0 <= self.std < float("inf"), f"noise needs a finite std >= 0, got std={self.std}")

    def row(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Tensor, State]:
        # by name, so that a tensor gets the same noise however the model is cut into rows
        seed = seed_of(rng)
        drawn = [
            torch.randn(size, generator=make_generator(seed, name), dtype=accumulation_dtype(row.dtype))
            for name, size in zip(layout.names, layout.sizes, strict=True)
        ]
        noise = torch.cat(drawn).to(row.device) if drawn else row
        return cast(row + self.std * noise, row.dtype), state

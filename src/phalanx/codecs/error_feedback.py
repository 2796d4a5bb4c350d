# SPDX-License-Identifier: Apache-2.0
"""What a codec lost is sent next time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.precision import cast
from phalanx.core.row_memory import load, store
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("error_feedback", "codec")
class ErrorFeedback(Codec):
    """The row plus the residual of earlier rounds, coded; what the code loses is the next residual.

    decoded + residual = row + old residual, so nothing is lost, only late.

    Args:
        codec: any; a biased one, such as sign(scaled=True), is what this repairs.
    Source: Seide et al., 1-bit stochastic gradient descent, 2014; Karimireddy et al., Error feedback fixes
        signSGD, 2019, arXiv:1901.09847, Algorithm 2. Differs: the residual is in the unit of the row, before the
        learning rate; entries where the sum or the decoded row is NaN or Inf keep their old residual.
    """

    codec: Codec

    @property
    def scope(self) -> Scope:
        return self.codec.scope

    @property
    def remembers(self) -> bool:
        return True

    @property
    def linear(self) -> bool:
        return self.codec.linear

    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        memory = state.get("residual", {})
        old = load(memory, layout, torch.zeros_like(row))
        owed = old + row
        # what a narrow dtype cannot hold stays in the residual
        payload, inner = self.codec.encode(cast(owed, row.dtype), layout, state.get("inner", {}), rng)
        new = owed - self.codec.decode(payload, layout).to(owed)
        return payload, {"residual": {**memory, **store(new, old, layout)}, "inner": inner}

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        return self.codec.decode(payload, layout)

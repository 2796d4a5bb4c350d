# SPDX-License-Identifier: Apache-2.0
"""A wrapper of a codec: what the codec loses in one round is added to the row of the next round."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.coded_rows import Adder
from phalanx.core.columns import Shard
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import cast
from phalanx.core.round import Rng
from phalanx.core.row_memory import load, store
from phalanx.core.stage import Kept, Scope
from phalanx.core.trees import State


@method("error_feedback", "codec")
class ErrorFeedback(Codec):
    """Codes the row plus the residual of earlier rounds; what the code loses is the next residual.

    decoded + residual = row + decay * old residual: with decay=1 nothing is lost, only sent later.

    Args:
        codec: any codec; error feedback repairs a biased one, such as sign(scaled=True).
        decay: share of the old residual that is added to the row, in (0, 1]; a lower one forgets old rows sooner.
    Source: Seide et al., 1-bit stochastic gradient descent, 2014; Karimireddy et al., Error feedback fixes
        signSGD, 2019, arXiv:1901.09847, Algorithm 2. Differs: the residual is in the unit of the row, before the
        learning rate; entries where the sum or the decoded row is NaN or Inf keep their old residual. With a decay:
        Peng et al., DeMo, 2024, arXiv:2411.19870, Algorithm 1, whose momentum is the residual of the update.
    """

    codec: Codec
    decay: float = 1.0

    def validate(self) -> None:
        require(0 < self.decay <= 1, f"error_feedback needs 0 < decay <= 1, got decay={self.decay}")

    @property
    def scope(self) -> Scope:
        return self.codec.scope

    @property
    def remembers(self) -> bool:
        return True

    @property
    def keeps(self) -> Kept:
        return self.codec.keeps

    @property
    def linear(self) -> bool:
        return self.codec.linear

    @property
    def grain(self) -> int | None:
        return self.codec.grain

    @property
    def result_code(self) -> str | None:
        return self.codec.result_code

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        return self.codec.split(payload, layout, shards)

    def decode_part(self, payload: Payload, layout: Layout, shard: Shard) -> Tensor:
        return self.codec.decode_part(payload, layout, shard)

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        memory = state.get("residual", {})
        old = load(memory, layout, torch.zeros_like(row))
        corrected = old * self.decay + row
        # the residual keeps what a narrow dtype cannot hold
        payload, inner = self.codec.encode(cast(corrected, row.dtype), layout, state.get("inner", {}), rng)
        new = corrected - self.codec.decode(payload, layout).to(corrected)
        return payload, {"residual": {**memory, **store(new, old, layout)}, "inner": inner}

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        return self.codec.decode(payload, layout)

    def adder(self, layout: Layout) -> Adder | None:
        return self.codec.adder(layout)

# SPDX-License-Identifier: Apache-2.0
"""The codec that sends a row without compression."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.columns import Shard
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.round import Rng
from phalanx.core.stage import Kept
from phalanx.core.trees import State


@method("dense", "codec")
class Dense(Codec):
    """Sends the row as it is, in its dtype: the uncompressed baseline. As published."""

    @property
    def linear(self) -> bool:
        return True

    @property
    def keeps(self) -> Kept:
        return "sums"

    @property
    def unbiased(self) -> bool:
        return True

    @property
    def grain(self) -> int | None:
        return 1

    def split(self, payload: Payload, layout: Layout, shards: Sequence[Shard]) -> list[Payload]:
        values = self.decode(payload, layout)
        return [{"values": shard.take(values)} for shard in shards]

    def encode(self, row: Tensor, layout: Layout, state: State, rng: Rng) -> tuple[Payload, State]:
        return {"values": row}, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        (values,) = expect(payload, values=(layout.dtype, (layout.d,)))
        return values

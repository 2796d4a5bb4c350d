# SPDX-License-Identifier: Apache-2.0
"""The codec that sends a row without compression."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phalanx.core.codec import Codec, Payload
from phalanx.core.expression import method
from phalanx.core.layout import Layout
from phalanx.core.payload import expect
from phalanx.core.trees import State


@method("dense", "codec")
class Dense(Codec):
    """The row as it is, in its own dtype: the uncompressed baseline. As published."""

    @property
    def linear(self) -> bool:
        return True

    @property
    def unbiased(self) -> bool:
        return True

    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        return {"values": row}, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        (values,) = expect(payload, values=(layout.dtype, (layout.d,)))
        return values

# SPDX-License-Identifier: Apache-2.0
"""One level of the l_q norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from phalanx.codecs.levels import Coding, decode_levels, encode_levels
from phalanx.core.codec import Codec, Payload
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("lq", "codec")
class Lq(Codec):
    """Each entry of a tensor g as sign(g_i) ||g||_q with probability |g_i| / ||g||_q, else zero; unbiased.

    It is ATOMO over the entries at a budget of ||g||_1 / ||g||_q expected entries, with second moment
    ||g||_1 ||g||_q. q = 2 is 1-bit QSGD of whole tensors, q = inf is TernGrad without clipping.
    Computed in float32 on the CPU. A tensor that holds NaN or Inf arrives as NaN.

    Args:
        q: at least 1; higher is more exact and sends more entries.
        coding: "elias" codes the runs of zeros, "packed" takes two bits an entry.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, section 4 and Theorem 4 (l_q quantization). As published.
    """

    q: float = 2.0
    coding: Coding = "elias"

    def validate(self) -> None:
        require(self.q >= 1, f"lq needs q >= 1, got q={self.q}")

    @property
    def scope(self) -> Scope:
        return "tensor"

    @property
    def unbiased(self) -> bool:
        return True

    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        from phalanx.codecs import quantizer_kernels

        q = float(self.q)
        payload = encode_levels(
            row, layout, 1, None, self.coding, lambda x, w, out: quantizer_kernels.norms(x, w, q, out), rng
        )
        return payload, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        return decode_levels(payload, layout, 1, None, self.coding)

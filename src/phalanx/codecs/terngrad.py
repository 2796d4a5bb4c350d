# SPDX-License-Identifier: Apache-2.0
"""Three values an entry."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from phalanx.codecs.levels import Coding, decode_levels, encode_levels
from phalanx.core.codec import Codec, Payload
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("terngrad", "codec")
class Terngrad(Codec):
    """Each entry, clipped, as plus or minus its tensor's largest magnitude at random, or zero.

    Computed in float32 on the CPU. A tensor that holds NaN or Inf arrives as NaN.

    Args:
        clip: entries beyond so many sigma of their tensor are cut there first; inf clips nothing and is unbiased.
        coding: "packed" takes two bits an entry, "elias" codes runs of zeros: slower, and shorter on real gradients.
    Source: Wen et al., TernGrad, 2017, arXiv:1705.07878, Algorithm 1 and section 4 (layer-wise, clipped).
        Differs: sigma is the root mean square, so that a constant tensor is not clipped to nothing; each worker keeps
        its own scale where the paper shares the largest.
    """

    clip: float = 2.5
    coding: Coding = "packed"

    def validate(self) -> None:
        require(self.clip > 0, f"terngrad needs clip > 0, got clip={self.clip}")

    @property
    def scope(self) -> Scope:
        return "tensor"

    @property
    def unbiased(self) -> bool:
        return self.clip == math.inf

    def encode(
        self, row: Tensor, layout: Layout, state: State, rng: Callable[[], torch.Generator]
    ) -> tuple[Payload, State]:
        from phalanx.codecs import quantizer_kernels

        clip = float(self.clip)
        if clip == math.inf:
            payload = encode_levels(
                row, layout, 1, None, self.coding, lambda x, w, out: quantizer_kernels.norms(x, w, math.inf, out), rng
            )
        else:
            payload = encode_levels(
                row,
                layout,
                1,
                None,
                self.coding,
                lambda x, w, out: quantizer_kernels.clipped_maxima(x, w, clip, out),
                rng,
            )
        return payload, state

    def decode(self, payload: Payload, layout: Layout) -> Tensor:
        return decode_levels(payload, layout, 1, None, self.coding)

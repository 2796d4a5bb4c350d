# SPDX-License-Identifier: Apache-2.0
"""A quantizer that sends one of three values for each entry."""

from __future__ import annotations

import math

import numpy as np

from phalanx.codecs.levels import Coding, LevelFormat, QuantizerCodec
from phalanx.core.expression import method, require


@method("terngrad", "codec")
class Terngrad(QuantizerCodec):
    """Clips each entry and sends it at random as plus or minus its tensor's largest magnitude, or as zero.

    Computed in float32 on the CPU. A tensor that holds NaN or Inf arrives as NaN.

    Args:
        clip: entries are clipped to this many sigma of their tensor; inf clips nothing and is unbiased.
        coding: "packed" takes two bits an entry, "elias" codes runs of zeros, which is slower, and
            shorter on real gradients.
    Source: Wen et al., TernGrad, 2017, arXiv:1705.07878, Algorithm 1 and section 4 (layer-wise, clipped).
        Differs: sigma is the root mean square, so that a constant tensor is not clipped to nothing; each worker has
        its own scale, where the paper takes the largest of all workers.
    """

    clip: float = 2.5
    coding: Coding = "packed"

    def validate(self) -> None:
        require(self.clip > 0, f"terngrad needs clip > 0, got clip={self.clip}")

    @property
    def unbiased(self) -> bool:
        return self.clip == math.inf

    @property
    def level_format(self) -> LevelFormat:
        return LevelFormat(1, None, self.coding)

    def measure_scales(self, entries: np.ndarray, width: int, scales: np.ndarray) -> None:
        from phalanx.codecs import quantizer_kernels

        if self.clip == math.inf:
            quantizer_kernels.norms(entries, width, math.inf, scales)
        else:
            quantizer_kernels.clipped_maxima(entries, width, float(self.clip), scales)

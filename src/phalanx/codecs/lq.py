# SPDX-License-Identifier: Apache-2.0
"""A quantizer with one level, the l_q norm of the tensor."""

from __future__ import annotations

import numpy as np

from phalanx.codecs.levels import Coding, LevelFormat, QuantizerCodec
from phalanx.core.expression import method, require


@method("lq", "codec")
class Lq(QuantizerCodec):
    """Sends each entry of a tensor g as sign(g_i) ||g||_q with probability |g_i| / ||g||_q, else zero; unbiased.

    It is ATOMO over the entries at a budget of ||g||_1 / ||g||_q expected entries, with second moment
    ||g||_1 ||g||_q. q = 2 is 1-bit QSGD of whole tensors, q = inf is TernGrad without clipping.
    Computed in float32 on the CPU. A tensor that holds NaN or Inf arrives as NaN.

    Args:
        q: >= 1; a higher one is more exact and sends more entries.
        coding: "elias" codes the runs of zeros, "packed" takes two bits an entry.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, section 4 and Theorem 4 (l_q quantization).
        Differs: q is at least 1; below, less than one entry of a tensor is expected to be sent.
    """

    q: float = 2.0
    coding: Coding = "elias"

    def validate(self) -> None:
        require(self.q >= 1, f"lq needs q >= 1, got q={self.q}")

    @property
    def level_format(self) -> LevelFormat:
        return LevelFormat(1, None, self.coding)

    def measure_scales(self, entries: np.ndarray, width: int, scales: np.ndarray) -> None:
        from phalanx.codecs import quantizer_kernels

        quantizer_kernels.norms(entries, width, float(self.q), scales)

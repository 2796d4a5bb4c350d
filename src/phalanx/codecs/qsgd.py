# SPDX-License-Identifier: Apache-2.0
"""A quantizer whose levels are fractions of the norm of each bucket."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from phalanx.codecs.levels import Coding, LevelFormat, QuantizerCodec
from phalanx.core.expression import method, require


@method("qsgd", "codec")
class Qsgd(QuantizerCodec):
    """Rounds each entry at random to one of 2^bits - 1 levels of its bucket's norm, or zero; unbiased.

    Computed in float32 on the CPU. A bucket that holds NaN or Inf arrives as NaN, one with a norm below 1e-36 as zero.

    Args:
        bits: bits of a level, 1 to 8, without the bit of the sign; fewer bits send less. One bit has the values -norm,
            0 and norm.
        bucket: number of entries of a tensor that share a norm; a smaller one is more exact and sends more norms. None
            takes all entries.
        norm: "l2", or "linf", which is more exact and leaves fewer zeros.
        coding: "packed" takes bits + 1 bits an entry; "elias" codes runs of zeros and levels, which is slower, and
            shorter where most levels are small.
    Source: Alistarh et al., QSGD, 2017, arXiv:1610.02132, section 3.1 and appendix on practical variants.
        Differs: the elias format has gamma codes of runs, signs and levels, not the paper's recursive code.
    """

    bits: int = 4
    bucket: int | None = 512
    norm: Literal["l2", "linf"] = "l2"
    coding: Coding = "packed"

    def validate(self) -> None:
        require(1 <= self.bits <= 8, f"qsgd needs 1 to 8 bits, got bits={self.bits}")
        require(self.bucket is None or self.bucket >= 1, f"qsgd needs bucket >= 1 or None, got bucket={self.bucket}")

    @property
    def level_format(self) -> LevelFormat:
        return LevelFormat(self.bits, self.bucket, self.coding)

    def measure_scales(self, entries: np.ndarray, width: int, scales: np.ndarray) -> None:
        from phalanx.codecs import quantizer_kernels

        quantizer_kernels.norms(entries, width, 2.0 if self.norm == "l2" else math.inf, scales)

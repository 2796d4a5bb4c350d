# SPDX-License-Identifier: Apache-2.0
"""The passes over (n, d) rows that the rules share."""

from __future__ import annotations

import torch
from torch import Tensor


def combine_rows(weights: Tensor, rows: Tensor) -> Tensor:
    """sum_i weights_i rows_i in the dtype of the rows. Shapes: (n,), (n, d) -> (d,)."""
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    return (weights.to(rows.device, wide) @ rows.to(wide)).to(rows.dtype)

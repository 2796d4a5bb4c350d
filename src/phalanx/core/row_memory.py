# SPDX-License-Identifier: Apache-2.0
"""A row's memory by the names of its tensors, so that it serves every cut of the model into rows.

DDP rebuilds its buckets after the first step: the same parameters come back in another order and in other company.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype


def load(memory: Mapping[str, Tensor], layout: Layout, default: Tensor) -> Tensor:
    """The memory as a row (d,) of at least float32; where a name has none, the default's entries."""
    default = default.to(accumulation_dtype(default.dtype))
    if not memory:
        return default
    known = {name: memory[name].to(default) for name in layout.names if name in memory}
    return layout.join({**layout.split(default), **known}).to(default)


def store(row: Tensor, before: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The row (d,) by name, in memory of its own.

    One NaN or Inf would stay for ever: such an entry is kept as in `before`, or zero where that is no number either.
    """
    kept = torch.where(row.isfinite(), row, before.nan_to_num(0.0, 0.0, 0.0))
    return {name: part.clone() for name, part in layout.split(kept).items()}

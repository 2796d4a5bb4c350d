# SPDX-License-Identifier: Apache-2.0
"""The memory of a row, stored by tensor name, so that it fits however the model is cut into rows.

DDP rebuilds its buckets after the first step: the same parameters then arrive in another order and in other buckets.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype


def load(memory: Mapping[str, Tensor], layout: Layout, default: Tensor) -> Tensor:
    """The memory as a row (d,) of at least float32; a tensor without memory has the default's entries."""
    default = default.to(accumulation_dtype(default.dtype))
    if not memory:
        return default
    known = {name: memory[name].to(default) for name in layout.names if name in memory}
    return layout.join({**layout.split(default), **known}).to(default)


def store(row: Tensor, before: Tensor, layout: Layout) -> dict[str, Tensor]:
    """A copy of the row (d,) as tensors by name.

    A NaN or Inf would stay for ever, so such an entry keeps its value in `before`, or 0 where that is not finite.
    """
    kept = torch.where(row.isfinite(), row, before.nan_to_num(0.0, 0.0, 0.0))
    return {name: part.clone() for name, part in layout.split(kept).items()}

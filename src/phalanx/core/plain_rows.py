# SPDX-License-Identifier: Apache-2.0
"""Makes a stack of plain rows, for a stage that is called outside of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.core.layout import Layout
from phalanx.core.stack import Stack

Rows = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray] | Sequence[Mapping[str, Tensor]]


def stack_of(rows: Rows, weights: Sequence[float] | Tensor | None, name: str) -> Stack:
    """A stack of rows as a server receives them; rows that differ from most in shape or dtype are erased.

    Args:
        name: name of the stage, for errors.
    Raises:
        ValueError: there is no row, or the rows are not floating-point numbers.
    """
    bad: dict[int, str] = {}
    if isinstance(rows, Tensor):
        table = rows.detach()
    elif isinstance(rows, list | tuple):
        table, bad = _table([_tensor(row, name) for row in rows], name)
    else:
        array = np.asarray(rows)
        if array.dtype == object:
            raise ValueError(f"{name} takes rows as a tensor, an array or a list of these, got {type(rows).__name__}")
        # torch reads neither negative strides nor read-only arrays
        table = torch.from_numpy(array if all(s > 0 for s in array.strides) and array.flags.writeable else array.copy())
    if table.dim() != 2:
        raise ValueError(f"{name} takes rows of shape (n, d), got {tuple(table.shape)}")
    if not table.is_floating_point():
        raise ValueError(f"{name} takes floating-point rows, got {table.dtype}; convert them first")
    n, d = table.shape
    claimed = torch.ones(n, dtype=torch.float64)
    if weights is not None:
        claimed = torch.as_tensor(weights, dtype=torch.float64, device="cpu").flatten()
        if len(claimed) != n:
            raise ValueError(f"{name} takes one weight a row, got {len(claimed)} weights for n={n} rows")
    layout = Layout.flat(d, table.dtype)
    return Stack(table, layout, tuple((i,) for i in range(n)), claimed, received=True).erase(bad)


def _tensor(row: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(row).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} takes a tensor for each row, got {type(row).__name__} ({error})") from None


def _table(rows: list[Tensor], name: str) -> tuple[Tensor, dict[int, str]]:
    """Copies rows into a table (n, d); also names the rows whose shape or dtype differs from that of most rows."""
    if not rows:
        raise ValueError(f"{name} needs at least one row, got none")
    forms = Counter((tuple(r.shape), r.dtype) for r in rows)
    (shape, dtype), _ = forms.most_common(1)[0]
    example = next(r for r in rows if (tuple(r.shape), r.dtype) == (shape, dtype))
    table = example.new_zeros(len(rows), example.numel())
    bad = {}
    for i, row in enumerate(rows):
        if (tuple(row.shape), row.dtype) == (shape, dtype):
            table[i] = row.flatten()
        else:
            bad[i] = f"{tuple(row.shape)} {row.dtype} where most rows are {shape} {dtype}"
    return table, bad

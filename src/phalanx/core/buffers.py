# SPDX-License-Identifier: Apache-2.0
"""Tables of rows: large tables reuse memory, and rows that already lie in one table are not copied.

The operating system hands out memory beyond 32 MiB as new pages and takes it back at once. The first write to a new
page costs several times as much as a later one, and a server fills such tables in every round.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_BYTES = 1 << 25  # the C library itself reuses smaller memory
_ALIGNED = 64  # bytes, as in torch: the last bits of a matrix product may depend on it
_MAX_FREE = 3  # unused blocks that are kept

_free: list[np.ndarray[Any, Any]] = []


def empty_rows(k: int, d: int, like: Tensor) -> Tensor:
    """An uninitialised table (k, d) with the dtype and device of `like`."""
    size = k * d * like.element_size()
    if like.device.type != "cpu" or size < MIN_BYTES:
        return like.new_empty(k, d)
    block = _take_block(size + _ALIGNED)
    start = -block.ctypes.data % _ALIGNED
    # only torch holds this view, for as long as any tensor lies in the block
    view = block[start : start + size]
    weakref.finalize(view, _return_block, block).atexit = False
    return torch.from_numpy(view).view(like.dtype).reshape(k, d)


class RowBuffer:
    """Collects rows one by one into a table (k, d): a view where they lie one after the other in memory, else a copy.

    Args:
        max_rows: largest number of rows.
        d: length of a row.
        like: gives dtype and device.
    """

    def __init__(self, max_rows: int, d: int, like: Tensor) -> None:
        self._max_rows, self._d, self._like = max_rows, d, like
        self._count = 0
        self._copy: Tensor | None = None
        self._adjacent: list[list[Tensor]] = []  # the parts of each row, while all rows lie one after the other
        self._end = 0  # the address where the next row has to begin

    def add(self, parts: Sequence[Tensor]) -> None:
        """Adds a row, given as one or more vectors of d entries in all."""
        filled = [part for part in parts if part.numel()]
        if self._copy is None and self._extends(filled):
            self._adjacent.append(filled)
        else:
            self._write(self._table()[self._count], filled)
        self._count += 1

    @property
    def rows(self) -> Tensor:
        """The k rows that were added, as one table (k, d)."""
        if self._adjacent:
            return self._adjacent[0][0].as_strided((self._count, self._d), (self._d, 1))
        return self._table()[: self._count]

    def _extends(self, parts: Sequence[Tensor]) -> bool:
        """Whether these parts follow each other and the earlier rows in memory; if so, they join the view."""
        end = self._end
        for part in parts:
            first, address = self._adjacent[0][0] if self._adjacent else parts[0], part.data_ptr()
            fits = (part.dtype, part.device) == (self._like.dtype, self._like.device) and part.is_contiguous()
            shares_memory = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            # the last bits of a product may depend on the address of the rows
            if not (fits and shares_memory and (address == end if end else address % _ALIGNED == 0)):
                return False
            end = address + part.numel() * part.element_size()
        self._end = end
        return bool(parts)

    def _table(self) -> Tensor:
        if self._copy is None:
            self._copy = empty_rows(self._max_rows, self._d, self._like)
            for row, parts in zip(self._copy, self._adjacent, strict=False):
                self._write(row, parts)
            self._adjacent = []
        return self._copy

    @staticmethod
    def _write(row: Tensor, parts: Sequence[Tensor]) -> None:
        for target, part in zip(row.split([len(part) for part in parts]), parts, strict=True):
            target.copy_(part)


def stack_rows(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Rows (d,) as one table (k, d), without a copy where they lie one after the other; `like` is one of them."""
    table = RowBuffer(len(rows), len(like), like)
    for row in rows:
        table.add([row])
    return table.rows


def _take_block(size: int) -> np.ndarray[Any, Any]:
    for i, block in enumerate(_free):
        if size <= block.nbytes <= 2 * size:
            try:
                return _free.pop(i)
            except IndexError:  # another thread was faster
                break
    # blocks of other sizes come from rounds that have ended
    _free.clear()
    return np.empty(size, dtype=np.uint8)


def _return_block(block: np.ndarray[Any, Any]) -> None:
    _free.append(block)
    del _free[:-_MAX_FREE]

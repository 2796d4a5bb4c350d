# SPDX-License-Identifier: Apache-2.0
"""Tables of rows: large ones in memory that is used again, and none where the rows lie in one already.

The system gives memory beyond 32 MiB as new pages and takes it back at once, and a new page costs several times what it
takes to write to it. A server fills such tables in every round.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_BYTES = 1 << 25  # smaller memory is used again by the C library
_ALIGNED = 64  # bytes, as torch's own: the bits of a matrix product may depend on it
_KEPT = 3  # unused blocks

_free: list[np.ndarray[Any, Any]] = []


def empty_rows(k: int, d: int, like: Tensor) -> Tensor:
    """(k, d) of the dtype and device of `like`, not initialised."""
    size = k * d * like.element_size()
    if like.device.type != "cpu" or size < LEAST_BYTES:
        return like.new_empty(k, d)
    block = _take(size + _ALIGNED)
    start = -block.ctypes.data % _ALIGNED
    # torch holds this view, and nothing else does, for as long as any tensor lies in the block
    view = block[start : start + size]
    weakref.finalize(view, _give_back, block).atexit = False
    return torch.from_numpy(view).view(like.dtype).reshape(k, d)


class RowBuffer:
    """Rows, added one by one, as (k, d): a view of the memory in which they lie one after the other, else a copy.

    Args:
        most: rows.
        like: gives dtype and device.
    """

    def __init__(self, most: int, d: int, like: Tensor) -> None:
        self._most, self._d, self._like = most, d, like
        self._count = 0
        self._copy: Tensor | None = None
        self._found: list[list[Tensor]] = []  # parts of rows that lie as they should
        self._end = 0  # where the next one belongs

    def add(self, parts: Sequence[Tensor]) -> None:
        """The next row, in vectors of d entries in all."""
        filled = [part for part in parts if part.numel()]
        if self._copy is None and self._follow(filled):
            self._found.append(filled)
        else:
            self._write(self._copied()[self._count], filled)
        self._count += 1

    @property
    def rows(self) -> Tensor:
        """(k, d), for as many rows as there are."""
        if self._found:
            return self._found[0][0].as_strided((self._count, self._d), (self._d, 1))
        return self._copied()[: self._count]

    def _follow(self, parts: Sequence[Tensor]) -> bool:
        """Whether these parts lie behind one another, and behind the rows before."""
        end = self._end
        for part in parts:
            first, place = self._found[0][0] if self._found else parts[0], part.data_ptr()
            form = (part.dtype, part.device) == (self._like.dtype, self._like.device) and part.is_contiguous()
            same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            # the bits of a product may depend on where the rows begin
            if not (form and same and (place == end if end else place % _ALIGNED == 0)):
                return False
            end = place + part.numel() * part.element_size()
        self._end = end
        return bool(parts)

    def _copied(self) -> Tensor:
        if self._copy is None:
            self._copy = empty_rows(self._most, self._d, self._like)
            for row, parts in zip(self._copy, self._found, strict=False):
                self._write(row, parts)
            self._found = []
        return self._copy

    @staticmethod
    def _write(row: Tensor, parts: Sequence[Tensor]) -> None:
        for room, part in zip(row.split([len(part) for part in parts]), parts, strict=True):
            room.copy_(part)


def together(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """Rows (d,) as (k, d), without a copy where they lie one after the other; like: one of them, for k = 0."""
    table = RowBuffer(len(rows), len(like), like)
    for row in rows:
        table.add([row])
    return table.rows


def _take(size: int) -> np.ndarray[Any, Any]:
    for i, block in enumerate(_free):
        if size <= block.nbytes <= 2 * size:
            try:
                return _free.pop(i)
            except IndexError:  # another thread was faster
                break
    # blocks of other sizes are of rounds that are over
    _free.clear()
    return np.empty(size, dtype=np.uint8)


def _give_back(block: np.ndarray[Any, Any]) -> None:
    _free.append(block)
    del _free[:-_KEPT]

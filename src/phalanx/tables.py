# SPDX-License-Identifier: Apache-2.0
"""Large tables of rows in memory that is used again.

The system gives memory beyond 32 MiB as new pages and takes it back at once, and a new page costs several times what it
takes to write to it. A server fills such tables in every round.
"""

from __future__ import annotations

import weakref
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

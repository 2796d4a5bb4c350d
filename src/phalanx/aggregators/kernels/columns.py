# SPDX-License-Identifier: Apache-2.0
"""Loops over pieces of (n, d) rows, so that no rule needs a second copy of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from phalanx.core.coded_rows import CodedRows
from phalanx.core.parallel import parallel_map
from phalanx.core.precision import accumulation_dtype

PIECE = 1 << 16  # columns


def for_each_piece(work: Callable[[int, int], None], d: int) -> None:
    """Calls work(start, stop) for pieces that cover d columns, on as many threads as torch uses.

    The pieces, and so the result, are the same for any number of threads.
    """
    parallel_map(lambda start: work(start, min(start + PIECE, d)), range(0, d, PIECE))


def mix(weights: Tensor, rows: Tensor) -> Tensor:
    """weights @ rows in the dtype of the rows. Shapes: (m, n), (n, d) -> (m, d)."""
    floats = accumulation_dtype(rows.dtype)
    weights = weights.to(rows.device, floats)
    if len(weights) == 1:
        return mix_one(weights[0], rows).reshape(1, -1)
    if rows.dtype == floats and 1 in rows.stride():
        return weights @ rows
    mixed = rows.new_empty(len(weights), rows.shape[1])
    for start in range(0, rows.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        mixed[:, piece] = weights @ rows[:, piece].to(floats)
    return mixed


def mix_one(weights: Tensor, rows: Tensor) -> Tensor:
    """sum_i weights_i rows_i in the dtype of the rows. Shapes: (n,), (n, d) -> (d,).

    Coded rows are added up without a table of them, to the same bits.
    """
    if isinstance(rows, CodedRows) and not rows.is_read:
        return rows.weighted_sum(weights)
    floats = accumulation_dtype(rows.dtype)
    weights = weights.to(rows.device, floats)
    if rows.dtype == floats and 1 in rows.stride():
        return weights @ rows
    mixed = rows.new_empty(rows.shape[1])
    for start in range(0, rows.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        mixed[piece] = weights @ rows[:, piece].to(floats)
    return mixed

# SPDX-License-Identifier: Apache-2.0
"""Random projections of rows: a few numbers for each, for which no false row can be prepared."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.columns import PIECE, for_each_piece
from phalanx.precision import wide


def project(rows: Tensor, key: int) -> np.ndarray:
    """Inner products of each row with four vectors of independent entries in (-1, 1), in float64.

    The entries are functions of the key and the column, and so are never stored. Sums of pieces are added in one order:
    threads change no bit.

    Shapes: (n, d) -> (n, 4).
    Args:
        key: 63 bits that nobody knew who had a hand in the rows.
    """
    from phalanx.codes import loops

    n, d = rows.shape
    sums = np.zeros((-(-d // PIECE), n, loops.COUNT))

    def swept(start: int, stop: int) -> None:
        part = rows[:, start:stop]
        if part.dtype != wide(part.dtype) or part.stride(1) != 1:
            part = part.to(wide(part.dtype)).contiguous()
        flat = part.as_strided(((n - 1) * part.stride(0) + stop - start,), (1,)).numpy()
        loops.project(flat, part.stride(0), n, stop - start, key, start, sums[start // PIECE])

    def multiplied(start: int, stop: int) -> None:
        table = np.empty((loops.COUNT, stop - start))
        loops.factors(key, start, table)
        product = rows[:, start:stop].double() @ torch.from_numpy(table).T.to(rows.device)
        sums[start // PIECE] = product.cpu().numpy()

    for_each_piece(swept if rows.device.type == "cpu" else multiplied, d)
    return sums.sum(axis=0)

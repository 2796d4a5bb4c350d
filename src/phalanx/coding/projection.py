# SPDX-License-Identifier: Apache-2.0
"""Random projections of rows: a few numbers for each, for which no false row can be prepared; and their combination."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.kernels.columns import PIECE, for_each_piece
from phalanx.core.precision import accumulation_dtype


def sweep(rows: Tensor, key: int, shares: np.ndarray, sample: int = 1) -> tuple[np.ndarray, Tensor]:
    """Inner products of each row with four vectors of independent entries in (-1, 1), and shares @ rows, in one pass.

    The entries are functions of the key and the column, and so are never stored. All sums are in float64, and sums of
    pieces are added in one order: threads change no bit.

    Shapes: (n, d), (n,) -> (n, 4), (d,) of the dtype of the rows.
    Args:
        key: 63 bits that nobody knew who had a hand in the rows.
        sample: above 1, only the first of so many equal parts of each piece of columns is looked at, as if the others
            were zero; their combination is not set.
    """
    from phalanx.coding import projection_kernels

    n, d = rows.shape
    floats = accumulation_dtype(rows.dtype)
    sums = np.zeros((-(-d // PIECE), n, projection_kernels.COUNT))
    mixed = torch.empty(d, dtype=floats, device=rows.device)

    def swept(start: int, stop: int) -> None:
        part = rows[:, start:stop]
        if part.dtype != floats or part.stride(1) != 1:
            part = part.to(floats).contiguous()
        flat = part.as_strided(((n - 1) * part.stride(0) + stop - start,), (1,)).numpy()
        out = mixed[start:stop].numpy()
        projection_kernels.sweep(flat, part.stride(0), n, stop - start, key, start, shares, sums[start // PIECE], out)

    def multiplied(start: int, stop: int) -> None:
        table = np.empty((projection_kernels.COUNT, stop - start))
        projection_kernels.factors(key, start, table)
        part = rows[:, start:stop].double()
        sums[start // PIECE] = (part @ torch.from_numpy(table).T.to(rows.device)).cpu().numpy()
        mixed[start:stop] = torch.from_numpy(shares).to(rows.device) @ part

    work = swept if rows.device.type == "cpu" else multiplied
    for_each_piece(lambda start, stop: work(start, start - (start - stop) // sample), d)
    return sums.sum(axis=0), mixed.to(rows.dtype)

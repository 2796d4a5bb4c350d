# SPDX-License-Identifier: Apache-2.0
"""Shares of the singular values of weights, and stable ranks, without a singular value decomposition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from phalanx.core.precision import accumulation_dtype, finite
from phalanx.core.round import make_generator

_LONG = 512  # if the short side is longer, all eigenvalues take far longer than a few products with thin matrices
_WIDTH, _PRODUCTS = 8, 12  # columns and steps of the Krylov space


def energies(matrices: Tensor) -> list[float]:
    """The shares of the squared Frobenius norm that the first, second, ... singular values hold.

    Shapes: (copies, rows, columns) -> min(rows, columns) numbers that fall and sum to 1; the i-th number is the share
        of the i-th values of all copies together. Zeros for a zero matrix.
    Raises:
        ValueError: an entry is not finite, or there are no data.
    """
    squares = torch.linalg.eigvalsh(_gram(_scaled(matrices))).double().clamp(min=0).flip(1).sum(dim=0)
    total = float(squares.sum())
    return [float(square) / total if total else 0.0 for square in squares]


def rank_for(shares: Sequence[float], energy: float) -> int:
    """The number of first singular values that together hold this share of the energy; 1 for a zero matrix."""
    held = list(accumulate(shares))
    return next(i for i, sum_ in enumerate(held, 1) if sum_ >= energy * held[-1])


def stable_rank(matrices: Tensor) -> float:
    """||W||_F^2 / ||W||_2^2, as the mean over the copies; 0 for a zero matrix, and never more than the rank.

    If the short side is above 512, ||W||_2 comes from a projection to a Krylov space, with an error of about 1e-3.

    Shapes: (copies, rows, columns) -> a number.
    Raises:
        ValueError: an entry is not finite, or there are no data.
    """
    whole = _scaled(matrices)
    projected = torch.stack([_projected(w) for w in whole]) if min(whole.shape[1:]) > _LONG else whole
    largest = torch.linalg.eigvalsh(_gram(projected))[:, -1]
    squares = torch.linalg.vector_norm(whole, dim=(1, 2)).square()
    return float(torch.where(squares > 0, squares / largest, 0.0).mean())


def _scaled(matrices: Tensor) -> Tensor:
    """The matrices divided by their largest entry, which changes no share and keeps squares in range."""
    if matrices.is_meta:
        raise ValueError("its weight has no data; build the model on a device that holds them")
    if not finite(matrices.detach()):
        raise ValueError("its weight has entries that are not finite; go back to weights from before that")
    w = matrices.detach().to(accumulation_dtype(matrices.dtype))
    top = w.abs().amax()
    return w / top if top > 0 else w


def _gram(matrices: Tensor) -> Tensor:
    """W W^T or W^T W, whichever is smaller."""
    rows, columns = matrices.shape[1:]
    return matrices @ matrices.mT if rows <= columns else matrices.mT @ matrices


def _projected(w: Tensor) -> Tensor:
    """W projected to a block Krylov space, which hardly changes its largest singular value.

    Source: Musco and Musco, Randomized Block Krylov Methods, 2015, arXiv:1504.05477, Algorithm 2. As published.
    """
    w = w if w.shape[0] <= w.shape[1] else w.mT  # orthogonalises short vectors
    rng = make_generator("krylov", 0, *w.shape)
    basis = [torch.linalg.qr(w @ torch.randn(w.shape[1], _WIDTH, generator=rng).to(w)).Q]
    for _ in range(_PRODUCTS):
        basis.append(torch.linalg.qr(w @ (w.mT @ basis[-1])).Q)
    return torch.linalg.qr(torch.cat(basis, dim=1)).Q.mT @ w

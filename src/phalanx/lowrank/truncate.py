# SPDX-License-Identifier: Apache-2.0
"""Truncated SVD: the best approximation of a matrix by two thin ones, exact or by random projection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from phalanx.core.precision import finite
from phalanx.core.round import make_generator

Svd = Literal["auto", "exact", "randomized"]
_LONG = 512  # if the short side is longer, a random projection is faster than the eigenvectors of a Gram matrix


@dataclass(frozen=True)
class Truncate:
    """Splits W into v = U sqrt(S) and u = sqrt(S) V^T of the `rank` largest singular values.

    It computes in float32 (float64 for float64 weights) on the device of W and casts back. The largest entry of each
    row of u is positive, so that the signs do not depend on the LAPACK library.

    Shapes: (copies, rows, columns) -> v (copies, rows, rank), u (copies, rank, columns).
    Args:
        svd: "exact" calls `torch.linalg.svd`; "randomized" projects; "auto" projects if the short side is above 512 and
            the rank is at most half of it. Otherwise "auto" takes the eigenvectors of the Gram matrix of the short side
            in float64, whose rounding does not matter for float32 weights; float64 weights get the exact SVD.
        seed: of the random projection; the same seed gives the same factors in every process.
        oversampling: columns of the projection beyond the rank, >= 0.
        iterations: power iterations, >= 0; more are closer to the best approximation.
    Raises:
        ValueError: svd is none of these three, or a matrix has an entry that is not finite.
    Source: Halko, Martinsson and Tropp, Finding Structure with Randomness, 2011, arXiv:0909.4061, Algorithms 4.4 and
        5.1. As published.
    """

    svd: Svd = "auto"
    seed: int = 0
    oversampling: int = 16
    iterations: int = 4

    def __post_init__(self) -> None:
        if self.svd not in get_args(Svd):
            raise ValueError(f"svd must be {' or '.join(map(repr, get_args(Svd)))}, got {self.svd!r}")

    def __call__(self, matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        pairs = [self._one(matrix, rank) for matrix in matrices.detach()]
        return torch.stack([v for v, _ in pairs]), torch.stack([u for _, u in pairs])

    def _one(self, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        rows, columns = matrix.shape
        if matrix.is_meta:
            return matrix.new_empty(rows, rank), matrix.new_empty(rank, columns)
        w = matrix if matrix.dtype == torch.float64 else matrix.float()
        if not finite(w):
            raise ValueError("its weight has entries that are not finite; go back to weights from before that")
        short = min(rows, columns)
        if self.svd == "randomized" or (self.svd == "auto" and short > _LONG and 2 * rank <= short):
            u, s, vh = self._projected(w, rank)
        elif self.svd == "auto" and w.dtype != torch.float64:
            u, s, vh = _by_gram(w)
        else:
            u, s, vh = torch.linalg.svd(w, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank].sqrt(), vh[:rank]
        largest = vh.gather(1, vh.abs().argmax(dim=1, keepdim=True)).squeeze(1)
        signs = torch.where(largest < 0, -1.0, 1.0).to(s)
        return (u * (s * signs)).to(matrix.dtype), (vh * (s * signs).unsqueeze(1)).to(matrix.dtype)

    def _projected(self, w: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        width = min(rank + self.oversampling, *w.shape)
        rng = make_generator("truncate", self.seed, *w.shape)
        # drawn on the CPU, because generators of different devices give different numbers
        basis = torch.linalg.qr(w @ torch.randn(w.shape[1], width, generator=rng).to(w)).Q
        for _ in range(self.iterations):
            basis = torch.linalg.qr(w @ torch.linalg.qr(w.mT @ basis).Q).Q
        u, s, vh = torch.linalg.svd(basis.mT @ w, full_matrices=False)
        return basis @ u, s, vh


def _by_gram(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD by the Gram matrix of the short side; u s vh equals w up to the rounding of w's dtype."""
    if w.shape[0] > w.shape[1]:
        v, s, uh = _by_gram(w.mT)
        return uh.mT, s, v.mT
    wide = w.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    u, s = vectors.flip(1), values.flip(0).clamp(min=0).sqrt()
    inverse = torch.where(s > 0, 1 / s, 0.0)
    return u.to(w.dtype), s.to(w.dtype), ((u * inverse).mT @ wide).to(w.dtype)

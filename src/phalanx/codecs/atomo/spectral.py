# SPDX-License-Identifier: Apache-2.0
"""Singular values and vectors as atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from phalanx.codecs.atomo.atoms import Atoms, Forms
from phalanx.core.expression import method

_PIECE = 1 << 16  # entries that are cast to float64 at a time: half a megabyte, which stays in cache


@method("spectral", "atoms")
class Spectral(Atoms):
    """The rank-one matrices sigma_i u_i v_i^T of a tensor that is viewed as a matrix X, with padding where needed.

    The right vectors come from the small Gram matrix X^T X in float64. X v_i / p_i and v_i are sent for an atom, so the
    sum of all atoms is X V V^T = X up to rounding, however exact the singular values are.

    Args:
        reshape: "paper" views convolutions (a, b, k, l) as (a b / 2, 2 k l), vectors (n) as (n / 2, 2), and keeps
            matrices and 1x1 convolutions. "matrix" views all tensors as (first, rest): an atom is smaller, the variance
            a quarter lower at equal bytes (recipe atomo-variance), and encoding takes about five times as long.
            "square" makes the matrix as square as possible.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, Section 4. Differs: odd sizes are padded; a singular value below
        the rounding of the largest counts as zero.
    """

    reshape: Literal["paper", "matrix", "square"] = "paper"

    @property
    def vectors(self) -> bool:
        return True

    def most(self, shape: torch.Size) -> int:
        return min(self.sides(shape))

    def sides(self, shape: torch.Size) -> tuple[int, int]:
        """The numbers of rows and columns of the matrix that a tensor is viewed as."""
        d = shape.numel()
        if d == 0 or self.reshape == "square":
            columns = math.isqrt(max(d - 1, 0)) + 1
            return -(-d // columns), columns
        if self.reshape == "matrix" or len(shape) == 2:
            rows = shape[0] if shape else 1
            return rows, d // rows
        if len(shape) < 2:
            return -(-d // 2), min(d, 2)
        inside = d // (shape[0] * shape[1])
        return (shape[0], shape[1]) if inside == 1 else (-(-shape[0] * shape[1] // 2), 2 * inside)

    def matrix(self, x: Tensor) -> Tensor:
        """The matrix that a tensor is viewed as; missing entries are zero."""
        rows, columns = self.sides(x.shape)
        flat = x.reshape(-1)
        flat = pad(flat, (0, rows * columns - len(flat))) if len(flat) < rows * columns else flat
        return flat.reshape(rows, columns)

    def analyse(self, x: Tensor) -> tuple[Tensor, Any]:
        matrix = self.matrix(x)
        tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
        # the Gram matrix of float64 entries would lose half of their digits, and overflow
        gram = _gram(tall) if x.dtype != torch.float64 else tall
        if not bool(gram.isfinite().all()):
            return x.new_full((1,), torch.nan), None
        if gram is tall:
            _, sigma, right = torch.linalg.svd(tall, full_matrices=False)
        else:
            squares, vectors = torch.linalg.eigh(gram)
            sigma, right = squares.clamp(min=0).sqrt(), vectors.T
        floor = torch.finfo(x.dtype).eps * sigma.max() if len(sigma) else 0.0
        return torch.where(sigma > floor, sigma, 0.0), (tall, right)

    def forms(self, shape: torch.Size, dtype: torch.dtype, ones: int, others: int) -> Forms:
        short, long = sorted(self.sides(shape))
        return {"left": (dtype, (ones + others, long)), "right": (dtype, (ones + others, short))}

    def write(self, known: Any, coefficients: Tensor, p: Tensor, kept: Tensor) -> dict[str, Tensor]:
        tall, right = known
        kept_right = right[kept].to(tall)
        return {"left": (kept_right / p[kept].to(tall).unsqueeze(1)) @ tall.T, "right": kept_right}

    def read(
        self, parts: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype, ones: int, others: int
    ) -> Tensor:
        rows, columns = self.sides(shape)
        left, right = parts["left"], parts["right"]
        matrix = left.T @ right if rows >= columns else right.T @ left
        return matrix.reshape(-1)[: shape.numel()].reshape(shape)


def _gram(tall: Tensor) -> Tensor:
    """The Gram matrix tall^T tall in float64. Shapes: (m, k) -> (k, k)."""
    gram = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=tall.device)
    for piece in tall.split(max(1, _PIECE // max(1, tall.shape[1]))):
        wide = piece.to(torch.float64)
        gram.addmm_(wide.T, wide)
    return gram

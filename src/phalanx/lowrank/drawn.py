# SPDX-License-Identifier: Apache-2.0
"""Factors at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """Factors as PyTorch draws the weights of two layers, whatever the matrices hold: uniform within 1 / sqrt(inputs).

    Every call goes on with the stream.

    Shapes: (copies, rows, columns) -> v (copies, rows, rank), u (copies, rank, columns).
    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv:1502.01852, as in `nn.Linear` and `nn.Conv2d`.
    """

    rng: torch.Generator

    def __call__(self, matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        copies, rows, columns = matrices.shape
        return self._uniform(matrices, copies, rows, rank), self._uniform(matrices, copies, rank, columns)

    def _uniform(self, like: Tensor, copies: int, rows: int, inputs: int) -> Tensor:
        # drawn on the CPU, because generators of different devices give different numbers
        return ((2 * torch.rand(copies, rows, inputs, generator=self.rng) - 1) * inputs**-0.5).to(like)

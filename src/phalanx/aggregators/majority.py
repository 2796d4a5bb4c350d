# SPDX-License-Identifier: Apache-2.0
"""A rule that returns the sign that most rows have."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.aggregators.kernels.columns import PIECE
from phalanx.aggregators.kernels.order import median
from phalanx.core.aggregator import Aggregator
from phalanx.core.buffers import empty_rows
from phalanx.core.coded_rows import CodedRows
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("majority", "aggregator")
class Majority(Aggregator):
    """The sign that more rows have in each direction, in {-1, 0, 1}; a tie gives 0. Weights are ignored.

    Installed values are no directions; their coordinate-wise median is taken.

    Shapes: (n, d) -> (1, d).
    Source: Bernstein et al., signSGD with Majority Vote is Communication Efficient and Fault Tolerant, 2019,
        arXiv:1810.05291, Algorithm 1.
    Differs: rows may hold zeros, which have no vote.
    """

    requirement: ClassVar[str] = "n > 2f"

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        rows, cut = stack.rows, stack.layout.stepped
        voted = empty_rows(1, rows.shape[1], rows)[0]
        _vote(rows[:, :cut], voted[:cut])
        if cut < len(voted):
            voted[cut:] = median(rows[:, cut:])
        return stack.one(voted), {}


def _vote(rows: Tensor, out: Tensor) -> None:
    if isinstance(rows, CodedRows) and rows.vote(out):
        return
    for start in range(0, rows.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        # float32 counts rows exactly, float16 only to 2048
        out[piece] = rows[:, piece].sign().sum(dim=0, dtype=torch.float32).sign()

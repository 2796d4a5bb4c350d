# SPDX-License-Identifier: Apache-2.0
"""How to move two factors so that their product moves as a matrix would."""

from __future__ import annotations

import torch
from torch import Tensor

# directions in which a factor is shorter than this share of its longest one are left alone: a step along them would
# have to be so long that its second order outweighs its first
_SHORTEST = 0.01


def tangent(step: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of two factors whose first order is the best approximation of a step of their product.

    With P and Q the projections on the columns of `left` and the rows of `right`, the product can move by
    P D + D Q - P D Q, which is D itself where the rank is full. Of the pairs that give it, this one treats both alike:
    left^+ D (I - Q / 2) and (I - P / 2) D right^+.

    Shapes: (..., rows, columns), (..., rows, r), (..., r, columns) -> (..., rows, r), (..., r, columns).
    """
    inverse_left = torch.linalg.pinv(left, rtol=_SHORTEST)
    inverse_right = torch.linalg.pinv(right, rtol=_SHORTEST)
    of_right, of_left = inverse_left @ step, step @ inverse_right
    both = of_right @ inverse_right
    return of_left - left @ both / 2, of_right - both @ right / 2

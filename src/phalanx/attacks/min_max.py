# SPDX-License-Identifier: Apache-2.0
"""An attack whose row is no farther from any honest row than honest rows are from each other."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from phalanx.aggregators.kernels.gram import distances
from phalanx.core.attack import Attack, View
from phalanx.core.expression import method
from phalanx.core.precision import accumulation_dtype, finite
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State

Direction = Literal["std", "unit", "sign"]


@method("min_max", "attack")
class MinMax(Attack):
    """All Byzantine workers send mean + g p, with the largest g at which the row is within the diameter of honest rows.

    The mean is that of the honest rows, p points away from it, and the largest distance of the row from an honest row
    is at most the largest distance between two honest rows.

    Shapes: (k, d) -> (k, d).
    Args:
        direction: p is minus the standard deviation of each coordinate ("std"), minus the mean divided by its length
            ("unit"), or minus the sign of the mean ("sign").
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, section IV. Differs: g is the root of the
        quadratic inequalities, where the paper searches for it by halving steps.
    """

    omniscient: ClassVar[bool] = True
    runs_on: ClassVar[Scope] = "vector"

    direction: Direction = "std"

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        honest = finite_rows(view)
        squared = distances(honest).squared
        return hidden_row(honest, self.direction, np.full(len(honest), squared.max(initial=0.0)), each=True), state


def finite_rows(view: View | None) -> Tensor:
    """The honest rows without those that are not finite, which no rule takes; one row of zeros if none is left."""
    assert view is not None
    honest = view.honest
    left = honest[[i for i, row in enumerate(honest) if finite(row)]]
    return left if len(left) else honest.new_zeros(1, honest.shape[1])


def hidden_row(honest: Tensor, direction: Direction, limits: np.ndarray, each: bool) -> Tensor:
    """mean + g p, with the largest g >= 0 that keeps its squared distances from the honest rows within limits.

    Shapes: (n, d), (n,) -> (d,).
    Args:
        limits: of the squared distance from each honest row; of their sum, in its first entry, unless `each`.
    """
    rows = honest.to(accumulation_dtype(honest.dtype))
    mean = rows.mean(dim=0)
    p = _away(rows, mean, direction)
    # ||mean + g p - x||^2 = ||mean - x||^2 + 2 g p . (mean - x) + g^2 ||p||^2
    constant, slope = np.zeros(len(rows)), np.zeros(len(rows))
    for i, row in enumerate(rows):
        difference = (mean - row).double()
        constant[i], slope[i] = float(difference @ difference), float(difference @ p.double())
    square = float(p.double() @ p.double())
    if square == 0.0 or not np.isfinite([*constant, *slope, square]).all():
        return mean
    if each:
        room, half = np.maximum(limits - constant, 0), slope
    else:
        room, half, square = np.maximum(limits[:1] - constant.sum(), 0), slope.sum()[None], square * len(rows)
    g = ((-half + np.sqrt(half**2 + square * room)) / square).min()
    return mean + float(g) * p


def _away(rows: Tensor, mean: Tensor, direction: Direction) -> Tensor:
    """The direction of the perturbation. Shapes: (n, d), (d,) -> (d,)."""
    if direction == "sign":
        return -torch.sign(mean)
    if direction == "unit":
        length = torch.linalg.vector_norm(mean)
        return -mean / length if bool(length > 0) else torch.zeros_like(mean)
    variance = torch.zeros_like(mean)
    for row in rows:
        variance += (row - mean).square_() / max(len(rows) - 1, 1)
    return -variance.sqrt_()

# SPDX-License-Identifier: Apache-2.0
"""An attack that sends rows within the spread of the honest rows."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("alie", "attack")
class Alie(Attack):
    """All Byzantine workers send mean + z std in each coordinate: far enough to do harm, near enough to be accepted.

    Shapes: (k, d) -> (k, d).
    Args:
        z: distance from the mean in standard deviations, of either sign. None takes the largest that f of n workers can
            hide, z = Phi^-1((n - f - s) / (n - f)), where s = floor(n / 2 + 1) - f honest workers lie further out.
    Source: Baruch et al., A little is enough, 2019, arXiv:1902.06156. Differs: mean and population standard
        deviation are those of all workers' rows before corruption, as in the published experiments of DETOX (which fix
        z = 1), where the paper takes those of the corrupted workers; s >= 1, as otherwise a Byzantine majority
        would go to infinity.
    """

    omniscient: ClassVar[bool] = True

    z: float | None = None

    def validate(self) -> None:
        require(self.z is None or math.isfinite(self.z), f"alie needs a finite z, got z={self.z}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        all_rows = view.rows.to(accumulation_dtype(view.rows.dtype))
        z = hidden_z(len(all_rows), int(view.byzantine.sum())) if self.z is None else self.z
        mean = all_rows.mean(dim=0)
        # torch.std warns about rows of length 0, and all differences at once would be a second copy of the rows
        variance = torch.zeros_like(mean)
        for row in all_rows:
            variance += (row - mean).square_() / len(all_rows)
        return mean + z * variance.sqrt_(), state


def hidden_z(n: int, f: int) -> float:
    """The z of the paper for f Byzantine workers among n; 0 when fewer than two are honest and nothing can be hidden.

    >>> round(hidden_z(45, 5), 3)
    0.126
    """
    honest = n - f
    if honest < 2:
        return 0.0
    num_outbid = min(max(n // 2 + 1 - f, 1), honest - 1)
    return NormalDist().inv_cdf((honest - num_outbid) / honest)

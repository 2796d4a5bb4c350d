# SPDX-License-Identifier: Apache-2.0
"""Attacks on the trimmed mean, the median and Krum that move the result against the direction of honest workers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from phalanx.aggregators.krum import Krum
from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, TooFewRows
from phalanx.core.trees import State


@method("fang", "attack")
class Fang(Attack):
    """A Byzantine worker sends in each coordinate a value just beyond those of all honest rows, against their mean.

    Where the mean of the honest rows is positive, the value is drawn evenly between their minimum m and m / b for m >
    0, or b m for m <= 0; else between their maximum M and b M for M > 0, or M / b. It is made for `trimmed_mean` and
    `median`.

    Shapes: (k, d) -> (k, d).
    Args:
        b: > 1; how far beyond the honest values it goes.
    Source: Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, 2020, arXiv:1911.11815,
        section 4.3, full knowledge, b = 2. Differs: on rows, which are changes, where the paper has whole models.
    """

    omniscient: ClassVar[bool] = True

    b: float = 2.0

    def validate(self) -> None:
        require(1 < self.b < math.inf, f"fang needs a finite b > 1, got b={self.b}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        honest = view.honest.to(accumulation_dtype(view.rows.dtype))
        mean, least, largest = honest.mean(dim=0), honest.min(dim=0).values, honest.max(dim=0).values
        below = torch.where(least > 0, least / self.b, least * self.b)
        above = torch.where(largest > 0, largest * self.b, largest / self.b)
        near, far = torch.where(mean > 0, least, largest), torch.where(mean > 0, below, above)
        forged = torch.empty(len(stack.rows), honest.shape[1], dtype=honest.dtype, device=honest.device)
        for i, source in enumerate(stack.sources):
            between = torch.rand(honest.shape[1], generator=round.rng(source[0]), dtype=honest.dtype)
            forged[i] = torch.lerp(near, far, between.to(honest.device))
        return forged, state


@method("fang_krum", "attack")
class FangKrum(Attack):
    """All Byzantine workers send -c sign(mean), with the largest c at which Krum takes their row.

    The search begins at a bound that no larger c can pass, and halves c until Krum, told the number of Byzantine
    workers, chooses the row among those of all workers. If it never does, the last c is sent.

    Shapes: (k, d) -> (k, d).
    Args:
        least: > 0; the search ends at a c below this.
    Source: Fang et al., Local Model Poisoning Attacks to Byzantine-Robust Federated Learning, 2020, arXiv:1911.11815,
        section 4.2, full knowledge, least = 1e-5. Differs: on rows, which are changes; all crafted rows are equal,
        where the paper draws the others within a small distance of the first.
    """

    omniscient: ClassVar[bool] = True
    runs_on: ClassVar[Scope] = "vector"

    least: float = 1e-5

    def validate(self) -> None:
        require(0 < self.least < math.inf, f"fang_krum needs a finite least > 0, got least={self.least}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        honest, f = view.honest, int(view.byzantine.sum())
        direction = -torch.sign(honest.to(accumulation_dtype(honest.dtype)).mean(dim=0))
        size = float(torch.linalg.vector_norm(direction))
        norms = torch.linalg.vector_norm(honest, dim=1, dtype=torch.float64)
        # a row of length 4 max ||x|| is farther from every honest row than these are from each other
        c = 4 * float(norms.max()) / size if size else 0.0
        while math.isfinite(c) and c > self.least and not _is_chosen(honest, (c * direction).to(honest.dtype), f):
            c /= 2
        return (c * direction if math.isfinite(c) else torch.zeros_like(direction)), state


def _is_chosen(honest: Tensor, forged: Tensor, f: int) -> bool:
    """Whether Krum takes the forged row among the honest ones and f copies of it."""
    rows = torch.cat([honest, forged.expand(f, -1)])
    try:
        chosen = Krum(f=f).aggregate(rows)
    except TooFewRows:
        return True
    return bool((chosen == forged).all())

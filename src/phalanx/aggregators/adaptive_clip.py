# SPDX-License-Identifier: Apache-2.0
"""A rule that clips rows to the usual norm of the round."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("adaptive_clip", "aggregator")
class AdaptiveClip(Aggregator):
    """Each row scaled down to an l2 norm of at most M, which is `factor` times the mean or the median norm of all rows.

    One Byzantine row can raise the mean of the norms without limit: r rows of norm L among n add r L / n. The median
    lies between norms of honest rows as long as these are the majority. Rows within the bound, and installed values,
    are not changed.

    Shapes: (n, d) -> (n, d), for "median" n > 2f.
    Args:
        of: "mean", as published, or "median".
        factor: > 0; a lower one limits the harm of one row more, and biases honest rows more.
    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963, norm clipping; the mean of
        the round is in the code of Wang et al., Attack of the Tails, 2020, arXiv:2007.05084.
    """

    of: Literal["mean", "median"] = "mean"
    factor: float = 1.0

    requirement: ClassVar[str] = "n > 2f"
    runs_on: ClassVar[Scope] = "vector"
    totals: ClassVar[bool] = True

    def validate(self) -> None:
        ok = 0 < self.factor < float("inf")
        require(ok, f"adaptive_clip needs a finite factor > 0, got factor={self.factor}")

    def tolerates(self, n: int) -> int:
        return max(0, (n - 1) // 2) if self.of == "median" else 0

    def merges(self, n: int) -> int:
        return n

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        cut = stack.layout.stepped
        norms = stack.directions.norms().cpu().numpy()
        bound = self.factor * float(np.mean(norms) if self.of == "mean" else np.median(norms))
        rows = stack.rows.clone()
        for i in np.flatnonzero(norms > bound):
            directions = rows[i, :cut]
            directions.copy_(directions.to(accumulation_dtype(directions.dtype)) * (bound / norms[i]))
        return stack.with_rows(rows, gated=True), {}

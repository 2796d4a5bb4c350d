# SPDX-License-Identifier: Apache-2.0
"""An attack that repeats the row of one honest worker."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.precision import accumulation_dtype, finite
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope
from phalanx.core.trees import State


@method("mimic", "attack")
class Mimic(Attack):
    """All Byzantine workers send the row of one honest worker, so that its data count f + 1 times.

    No row is an outlier, yet it misleads rules that expect rows of one distribution where the workers' data differ. In
    the first rounds Oja's rule estimates z, the direction in which honest rows vary most, and the target is the worker
    with the largest |sum_t <z_t, x_t>|; afterwards the target stays the same.

    Shapes: (k, d) -> (k, d).
    Args:
        warmup: rounds in which the target is chosen, about one epoch; 0 copies the first honest worker.
    Source: Karimireddy et al., Byzantine-robust learning on heterogeneous datasets via bucketing, 2022,
        arXiv:2006.09365, mimic attack with warm-up. Differs: Oja's step has length 1, so that the choice does not
        depend on the unit of the rows, and the mean is subtracted from the rows before the inner product.
    """

    omniscient: ClassVar[bool] = True
    runs_on: ClassVar[Scope] = "vector"

    warmup: int = 100

    def validate(self) -> None:
        require(self.warmup >= 0, f"mimic needs warmup >= 0 rounds, got warmup={self.warmup}")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        honest = [(w, i) for i, w in enumerate(view.workers) if not bool(view.byzantine[i])]
        if not honest:
            return stack.rows, state
        if state.get("rounds", 0) < self.warmup:
            state = _oja_step(view, honest, state, round)
        scores = state.get("scores", {})
        # a target that is missing or corrupt in this round is replaced by the next best
        _, place = max(honest, key=lambda pair: abs(scores.get(str(pair[0]), 0.0)))
        return view.rows[place], state


def _oja_step(view: View, honest: list[tuple[int, int]], state: State, round: Round) -> dict[str, Any]:
    """One step of Oja's rule over the honest rows."""
    rows = view.honest.to(accumulation_dtype(view.rows.dtype))
    if not finite(rows):
        return state
    t = state.get("rounds", 0)
    z = state["direction"].to(rows) if t else torch.randn(rows.shape[1], generator=round.rng()).to(rows)
    mean = rows.mean(dim=0)
    if t:
        mean = torch.lerp(mean, state["mean"].to(rows), t / (t + 1))
    centred = rows - mean
    z = _unit(t * _unit(z) + _unit((centred @ z) @ centred))
    scores = dict(state.get("scores", {}))
    for (worker, _), score in zip(honest, (centred @ z).tolist(), strict=True):
        scores[str(worker)] = scores.get(str(worker), 0.0) + score
    return {**state, "rounds": t + 1, "mean": mean, "direction": z, "scores": scores}


def _unit(x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(x)
    return x / length if bool(length > 0) else x

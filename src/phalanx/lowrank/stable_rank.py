# SPDX-License-Identifier: Apache-2.0
"""Stable ranks of a model's weights, and whether they have converged so that the warm-up can end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from phalanx.core.expression import require
from phalanx.core.registry import suggest
from phalanx.lowrank.layer_types import layers
from phalanx.lowrank.plan import Plan
from phalanx.lowrank.ranks import stable_rank_of


def stable_ranks(model: nn.Module, plan: Plan | Iterable[str] | None = None) -> dict[str, float]:
    """The stable rank ||W||_F^2 / ||W||_2^2 of each weight, by its name in a plan; the mean over its gates or groups.

    It costs a few products with thin matrices, or the eigenvalues of a square matrix if the short side is at most 512.

    Args:
        plan: a plan, whose low-rank entries are used, or names; by default all weights that can be factorized.
    Raises:
        ValueError: the model has no weight of some name or it cannot be factorized, a weight is not finite or has no
            data, or the model has low-rank layers.
    """
    known = {layer.path(f): (layer, f) for layer in layers(model) if not layer.refusal for f in layer.factors}
    if isinstance(plan, Plan):
        names = [entry.name for entry in plan if entry.rank is not None]
    else:
        names = list(known if plan is None else plan)
    for name in names:
        if name not in known:
            raise ValueError(f"no weight {name!r} of the model can be factorized; {suggest(name, list(known))}")
    by_weight: dict[tuple[int, int], float] = {}  # a weight that layers share is computed once
    ranks: dict[str, float] = {}
    for name in names:
        layer, factor = known[name]
        key = (id(layer.weight(factor)), factor.start)
        if key not in by_weight:
            by_weight[key] = stable_rank_of(layer, factor)
        ranks[name] = by_weight[key]
    return ranks


def ranks_converged(
    history: Sequence[Mapping[str, float]], tolerance: float = 0.02, window: int = 3, share: float = 0.9
) -> bool:
    """Whether the stable ranks of enough weights have stopped changing.

    A weight has converged if the largest and the smallest stable rank of its last `window` + 1 measurements differ by
    at most `tolerance` times their mean for each measurement. A constant factor, such as that of the scaled stable
    rank, does not matter.

    Args:
        history: results of `stable_ranks`, for example after each epoch, the oldest first.
        tolerance: relative change per measurement, >= 0; higher ends the warm-up sooner.
        window: number of changes that are compared, >= 1; with a shorter history nothing has converged.
        share: share of the weights that must have converged, in (0, 1].
    Raises:
        ValueError: a number is out of its range, the measurements have different weights, or one is not finite.
    Source: Wang et al., Cuttlefish, 2023, arXiv:2305.02538, Algorithm 1. Differs: the change is relative and over a
        window, and some weights may still change.
    """
    require(tolerance >= 0, f"ranks_converged needs tolerance >= 0, got tolerance={tolerance}")
    require(window >= 1, f"ranks_converged needs window >= 1, got window={window}")
    require(0 < share <= 1, f"ranks_converged needs a share in (0, 1], got share={share}")
    for i, look in enumerate(history):
        require(look.keys() == history[0].keys(), f"look {i} of the history is at other weights than look 0")
        for name, rank in look.items():
            require(math.isfinite(rank), f"look {i} of the history has stable rank {rank} for {name!r}")
    if len(history) <= window or not history[0]:
        return False
    last = history[-window - 1 :]
    num_converged = 0
    for name in last[0]:
        ranks = [look[name] for look in last]
        mean = sum(ranks) / len(ranks)
        num_converged += max(ranks) - min(ranks) <= tolerance * window * mean
    return num_converged >= share * len(last[0])

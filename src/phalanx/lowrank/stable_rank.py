# SPDX-License-Identifier: Apache-2.0
"""Whether the ranks of a model's weights have settled, so that the warm-up may end."""

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
    """The stable rank ||W||_F^2 / ||W||_2^2 of each weight, by its name in a plan; the mean of its gates or groups.

    It costs a few products with thin matrices, or the eigenvalues of a matrix of the short side up to 512.

    Args:
        plan: whose low-rank entries are looked at; or names; all weights that can be factorized if left out.
    Raises:
        ValueError: a name that the model does not have or that cannot be factorized, a weight that is not finite or
            has no data, or low-rank layers in the model.
    """
    known = {layer.path(f): (layer, f) for layer in layers(model) if not layer.refusal for f in layer.factors}
    if isinstance(plan, Plan):
        names = [entry.name for entry in plan if entry.rank is not None]
    else:
        names = list(known if plan is None else plan)
    for name in names:
        if name not in known:
            raise ValueError(f"no weight {name!r} of the model can be factorized; {suggest(name, list(known))}")
    looked: dict[tuple[int, int], float] = {}  # a weight that layers share is looked at once
    ranks: dict[str, float] = {}
    for name in names:
        layer, factor = known[name]
        key = (id(layer.weight(factor)), factor.start)
        if key not in looked:
            looked[key] = stable_rank_of(layer, factor)
        ranks[name] = looked[key]
    return ranks


def ranks_converged(
    history: Sequence[Mapping[str, float]], tolerance: float = 0.02, window: int = 3, share: float = 0.9
) -> bool:
    """Whether the stable ranks of enough weights have stopped to change.

    A weight has settled if its largest and smallest stable rank of the last `window` + 1 looks differ by no more than
    `tolerance` of their mean, per look. A scale that a weight keeps, as that of the scaled stable rank, has no say.

    Args:
        history: what `stable_ranks` returned at each look, for example after each epoch, the oldest first.
        tolerance: relative change per look, >= 0; higher ends the warm-up sooner.
        window: changes that are looked at, >= 1; before there are so many nothing has settled.
        share: of the weights that must have settled, in (0, 1].
    Raises:
        ValueError: a number out of its range, looks at different weights, or one that is not finite.
    Source: Wang et al., Cuttlefish, 2023, arXiv:2305.02538, Algorithm 1. Differs: the change is relative and that of a
        window, and a few weights may go on.
    """
    require(tolerance >= 0, f"settled needs tolerance >= 0, got tolerance={tolerance}")
    require(window >= 1, f"settled needs window >= 1, got window={window}")
    require(0 < share <= 1, f"settled needs a share in (0, 1], got share={share}")
    for i, look in enumerate(history):
        require(look.keys() == history[0].keys(), f"look {i} of the history is at other weights than look 0")
        for name, rank in look.items():
            require(math.isfinite(rank), f"look {i} of the history has stable rank {rank} for {name!r}")
    if len(history) <= window or not history[0]:
        return False
    last = history[-window - 1 :]
    calm = 0
    for name in last[0]:
        ranks = [look[name] for look in last]
        mean = sum(ranks) / len(ranks)
        calm += max(ranks) - min(ranks) <= tolerance * window * mean
    return calm >= share * len(last[0])

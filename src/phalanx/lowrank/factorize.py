# SPDX-License-Identifier: Apache-2.0
"""Makes a low-rank model from a dense one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from phalanx.core.expression import require
from phalanx.lowrank.factor import Factor, Split
from phalanx.lowrank.fast_path import set_fast_path
from phalanx.lowrank.layer_types import Layer, layers, parameter_names
from phalanx.lowrank.module_swap import for_huggingface, keep_mode_and_hooks, replace_modules
from phalanx.lowrank.plan import Plan
from phalanx.lowrank.plan_matching import match_plan
from phalanx.lowrank.planner import plan
from phalanx.lowrank.truncate import Svd, Truncate


def factorize(
    model: nn.Module,
    plan_or_ratio: Plan | float = 1 / 4,
    *,
    first: int = 1,
    keep: Sequence[str] = (),
    classifier: bool = True,
    embedding: bool = False,
    svd: Svd = "auto",
    seed: int = 0,
    inplace: bool = False,
) -> nn.Module:
    """The model with layers replaced by products of two thin ones: W = v u, u = sqrt(S) V^T, v = U sqrt(S).

    Biases, norms and statistics are kept. So are training mode, frozen weights, hooks, and weights that layers share.
    Optimizers, DDP wrappers and schemes that were built for the dense model must be built again.

    Args:
        plan_or_ratio: a plan, whose ranks are used even if the factors are larger than the weight; or the ratio of the
            rank to the full rank, in (0, 1], for `phalanx.lowrank.plan`.
        first, keep, classifier, embedding: as in `phalanx.lowrank.plan`; only with a ratio.
        svd: "exact", "randomized", or "auto", which is exact if the short side is at most 512.
        seed: of the randomized SVD; processes with equal weights and seeds get equal factors.
        inplace: change the model and return it. By default the model stays unchanged and the result shares no tensor
            with it; weights that are factorized are not copied.
    Raises:
        ValueError: the plan does not fit the model, a weight is not finite, or the model has low-rank layers already.
    Source: Wang et al., Pufferfish, 2021, arXiv:2103.03936, Algorithm 1. As published.

    >>> factorize(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), 1 / 4)[0]
    LowRankLinear(in_features=64, out_features=64, rank=16, bias=True)
    """
    require(isinstance(model, nn.Module), f"factorize takes a torch module, got {type(model).__name__}")
    if isinstance(plan_or_ratio, Plan):
        if (first, tuple(keep), classifier, embedding) != (1, (), True, False):
            raise ValueError("a plan says by itself which layers stay full; give first, keep, ... to plan(model, ...)")
        chosen = plan_or_ratio
    else:
        chosen = plan(model, plan_or_ratio, first, keep, classifier=classifier, embedding=embedding)
    return apply(model, chosen, Truncate(svd, seed), inplace)


def apply(model: nn.Module, plan: Plan, split: Split | None, inplace: bool = False) -> nn.Module:
    """The model with the layers of a plan.

    Args:
        split: makes the factors of a weight's matrices; None leaves them uninitialised.
        inplace: as in `factorize`.
    Raises:
        ValueError: as `factorize`.
    """
    model_layers = layers(model)
    ranks = match_plan(model_layers, parameter_names(model), plan)
    pairs: dict[tuple[int, int], tuple[nn.Parameter, nn.Parameter]] = {}
    replaced: dict[int, nn.Module] = {}
    for layer in model_layers:
        own = {factor.name: ranks.get(layer.path(factor)) for factor in layer.factors}
        if layer.family is None or all(rank is None for rank in own.values()):
            continue
        low = layer.family.like(layer.module, own)
        for factor in low.factors:
            key = (id(layer.weight(factor)), factor.start)
            if key not in pairs:
                pairs[key] = low.pair(factor)
                if split is not None:
                    _fill(pairs[key], layer, factor, split)
            for name, parameter in zip((factor.u, factor.v), pairs[key], strict=True):
                path, _, last = name.rpartition(".")
                setattr(low.get_submodule(path), last, parameter)
        replaced[id(layer.module)] = keep_mode_and_hooks(layer.module, low)
    new_parameters = {id(parameter): parameter for pair in pairs.values() for parameter in pair}
    return for_huggingface(set_fast_path(replace_modules(model, replaced, new_parameters, inplace)))


def _fill(pair: tuple[nn.Parameter, nn.Parameter], layer: Layer, factor: Factor, split: Split) -> None:
    u, v = pair
    try:
        left, right = split(factor.matrices(layer.weight(factor).detach()), v.shape[1])
    except ValueError as error:
        raise ValueError(f"layer {layer.path(factor)!r} cannot be factorized: {error}") from None
    with torch.no_grad():
        u.copy_(right.reshape(u.shape))
        v.copy_(left.reshape(v.shape))

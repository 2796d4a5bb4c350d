# SPDX-License-Identifier: Apache-2.0
"""Weight decay of the product of two factors, in place of the decay of each factor."""

from __future__ import annotations

import torch
from torch import nn

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.merge import low_rank_layers


def frobenius_decay(model: nn.Module, weight_decay: float) -> None:
    """Adds the gradient of weight_decay / 2 ||v u||_F^2 to the gradients of all factors.

    It is v^T v u for u and v u u^T for v, computed by products of rank r only. Call it between the exchange of
    gradients and the optimizer's step. `phalanx.lowrank.decay.factors_of` lists the factors; set their own weight decay
    to 0.

    Args:
        weight_decay: factor of the penalty, >= 0.
    Raises:
        ValueError: weight_decay < 0.
    Source: Wang et al., Cuttlefish, 2023, arXiv:2305.02538, section 3.4; Khodak et al., Initialization and
        Regularization of Factorized Neural Layers, 2021, arXiv:2105.01029.
    """
    if not weight_decay >= 0:
        raise ValueError(f"frobenius_decay needs weight_decay >= 0, got {weight_decay}")
    with torch.no_grad():
        for low, factor in _pairs(model):
            u, v = low.pair(factor)
            left, right = factor.thin(u, v)
            for parameter, part in ((u, left.mT @ left @ right), (v, left @ (right @ right.mT))):
                if parameter.grad is not None:
                    parameter.grad.add_(part.reshape(parameter.shape), alpha=weight_decay)


def factors_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are factors; a shared one appears once."""
    return list({id(p): p for low, factor in _pairs(model) for p in low.pair(factor)}.values())


def _pairs(model: nn.Module) -> list[tuple[LowRank, Factor]]:
    pairs: dict[int, tuple[LowRank, Factor]] = {}
    for low in low_rank_layers(model).values():
        for factor in low.factors:
            pairs.setdefault(id(low.pair(factor)[0]), (low, factor))
    return list(pairs.values())

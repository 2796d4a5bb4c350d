# SPDX-License-Identifier: Apache-2.0
"""The probabilities with which ATOMO keeps atoms (Algorithm 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from phalanx.core.expression import require

_MAX_PASSES = 12  # passes over all weights, after which the largest are sorted


def atomo_probabilities(weights: Tensor, budget: float) -> Tensor:
    """The probabilities p with which an unbiased sparsifier with a budget has the least variance.

    p minimises sum_i weights_i^2 / p_i under 0 < p_i <= 1 and sum_i p_i = min(budget, nonzeros): p_i = min(1, c |w_i|).
    p is 0 where the weight is 0.

    Shapes: any -> the same, float64.
    Args:
        weights: coefficients of unit atoms, of either sign.
        budget: expected number of atoms kept, > 0; a lower one sends less. From the number of nonzero weights on, all
            are kept.
    Raises:
        ValueError: the budget is not positive, or a weight is NaN or Inf.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, Algorithm 1 and Theorem 3.

    >>> atomo_probabilities(torch.tensor([10.0, 1, 1, -1, 1]), budget=3).tolist()
    [1.0, 0.5, 0.5, 0.5, 0.5]
    """
    require(budget > 0, f"atomo_probabilities needs a budget > 0 atoms, got budget={budget}")
    sizes = weights.detach().to(torch.float64, copy=True).abs_()
    top = float(sizes.max()) if sizes.numel() else 0.0
    require(math.isfinite(top), "atomo_probabilities needs finite weights; drop or replace NaN and Inf first")
    if top == 0.0:
        return torch.zeros_like(sizes)
    # sums of the relative sizes neither overflow nor vanish
    relative = sizes.div_(top)
    if budget >= len(relative.flatten()) or budget >= int(relative.count_nonzero()):
        return (relative > 0).to(torch.float64)
    left, total = _level(relative, budget)
    return relative.div_(total).mul_(left).clamp_(max=1.0)


def _level(sizes: Tensor, budget: float) -> tuple[float, float]:
    """The b and t of p_i = min(1, b sizes_i / t) with sum p = budget, for sizes >= 0 with more nonzeros than that.

    b is the part of the budget that is left for atoms that are not kept for certain, and t the sum of their sizes. Each
    pass sets the probabilities to one that exceed it at the present b / t, which only grows. Sizes that fall
    geometrically would need a pass each, so after some passes the largest are sorted instead.
    """
    rest, left = sizes.reshape(-1), float(budget)
    for _ in range(_MAX_PASSES):
        total = float(rest.sum())
        is_certain = rest * left > total
        count = int(is_certain.sum())
        if count == 0:
            return left, total
        rest, left = rest[~is_certain], left - count
    # at most ceil(left) probabilities are one
    largest, places = rest.topk(min(len(rest), math.ceil(left)))
    rest_sum = rest.index_fill(0, places, 0.0).sum()
    tails = largest.flip(0).cumsum(0).flip(0) + rest_sum
    steps = torch.arange(len(largest), dtype=torch.float64, device=largest.device)
    first = int((largest * (left - steps) <= tails).to(torch.int8).argmax())
    return left - first, float(tails[first])

# SPDX-License-Identifier: Apache-2.0
"""Ranks from the spectrum of the present weights."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.families import Layer
from phalanx.lowrank.spectrum import energies, rank_for, stable_rank


def shares_of(layer: Layer, factor: Factor) -> list[float]:
    """`energies` of a matrix of a model; its errors name the layer."""
    try:
        return energies(factor.matrices(layer.weight(factor)))
    except ValueError as error:
        raise ValueError(f"layer {layer.path(factor)!r} has no spectrum: {error}") from None


def stable_rank_of(layer: Layer, factor: Factor) -> float:
    """`stable_rank` of a matrix of a model; its errors name the layer."""
    try:
        return stable_rank(factor.matrices(layer.weight(factor)))
    except ValueError as error:
        raise ValueError(f"layer {layer.path(factor)!r} has no stable rank: {error}") from None


def own_rank(layer: Layer, factor: Factor, energy: float, start: float) -> tuple[int, str]:
    """The rank that a matrix asks for by itself, and why.

    Args:
        energy: part of the squared singular values to keep, in (0, 1].
        start: its stable rank before training; the rank is then that of today times the full rank over it. At 0 there
            is none to compare with, and `energy` decides.
    Source: Wang et al., Cuttlefish, 2023, arXiv:2305.02538, the scaled stable rank. As published; the energy is ours.
    """
    full = min(factor.rows, factor.columns)
    if start > 0:
        now = stable_rank_of(layer, factor)
        return min(full, max(1, round(now * full / start))), f"stable rank {now:.3g}, at the start {start:.3g}"
    return rank_for(shares_of(layer, factor), energy), f"{energy:.4g} of the energy"


def spread(gains: Sequence[Sequence[float]], costs: Sequence[int], budget: int) -> list[int]:
    """Ranks >= 1 that keep the most energy for their parameters: next is always the singular value of most energy a
    parameter that the budget has room for.

    As the gains of a matrix fall, these ranks are the best for what they cost as long as every step fits. The first
    that does not fit bounds what is lost: no ranks within the budget keep more than these and its gain. Nothing is
    lost where all costs are equal.

    Args:
        gains: energy of the first, second, ... singular value of each matrix, which fall; as many as its rank may be.
        costs: parameters of one rank of each.
        budget: parameters of all, >= the sum of the costs.
    """
    ranks, left = [1] * len(costs), budget - sum(costs)
    heap = [(-own[1] / cost, i) for i, (own, cost) in enumerate(zip(gains, costs, strict=True)) if len(own) > 1]
    heapify(heap)
    while heap:
        worth, i = heappop(heap)
        if worth == 0 or costs[i] > left:
            continue
        left -= costs[i]
        ranks[i] += 1
        if ranks[i] < len(gains[i]):
            heappush(heap, (-gains[i][ranks[i]] / costs[i], i))
    return ranks

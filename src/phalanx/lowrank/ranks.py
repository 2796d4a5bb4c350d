# SPDX-License-Identifier: Apache-2.0
"""Ranks from the singular values of the present weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer_types import Layer
from phalanx.lowrank.spectrum import energies, rank_for, stable_rank


def energies_of(layer: Layer, factor: Factor) -> list[float]:
    """The `energies` of a matrix of a model; errors name the layer."""
    try:
        return energies(factor.matrices(layer.weight(factor)))
    except ValueError as error:
        raise ValueError(f"layer {layer.path(factor)!r} has no spectrum: {error}") from None


def stable_rank_of(layer: Layer, factor: Factor) -> float:
    """The `stable_rank` of a matrix of a model; errors name the layer."""
    try:
        return stable_rank(factor.matrices(layer.weight(factor)))
    except ValueError as error:
        raise ValueError(f"layer {layer.path(factor)!r} has no stable rank: {error}") from None


def own_rank(layer: Layer, factor: Factor, energy: float, start: float) -> tuple[int, str]:
    """The rank of a matrix by its own spectrum, and the reason.

    Args:
        energy: share of the squared singular values to keep, in (0, 1].
        start: stable rank before training. If it is above 0, the rank is the present stable rank times the full rank
            over `start`. If it is 0, `energy` decides.
    Source: Wang et al., Cuttlefish, 2023, arXiv:2305.02538, the scaled stable rank. As published; the energy is ours.
    """
    full = min(factor.rows, factor.columns)
    if start > 0:
        now = stable_rank_of(layer, factor)
        return min(full, max(1, round(now * full / start))), f"stable rank {now:.3g}, at the start {start:.3g}"
    return rank_for(energies_of(layer, factor), energy), f"{energy:.4g} of the energy"


class Choice(NamedTuple):
    """A possible rank of a matrix.

    Args:
        rank: the rank; None for the dense matrix.
        cost: number of parameters.
        kept: share of the energy that is kept, in [0, 1].
    """

    rank: int | None
    cost: int
    kept: float


def choices(shares: Sequence[float], factor: Factor, least: int) -> list[Choice]:
    """Every rank from `least` on at which the factors are smaller than the dense matrix, and the dense matrix."""
    unit, kept = factor.size_at(1), list(accumulate(shares))
    ranks = [Choice(r, r * unit, kept[r - 1]) for r in range(least, (factor.size - 1) // unit + 1)]
    return [*ranks, Choice(None, factor.size, kept[-1])]


def spend_budget(options: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """One choice for each matrix, which together keep as much energy as the budget allows.

    Each matrix begins with its first choice. Then the matrix whose next step on the concave hull of energy over
    parameters is steepest takes that step, until a step exceeds the budget. The rest goes to single ranks that fit. Up
    to the step that did not fit, no other choices with as many parameters keep more energy. In the end, no choices
    within the budget keep more than these and that step together.

    Args:
        options: the choices of each matrix, with rising cost and energy.
        budget: number of parameters of all matrices, at least that of the first choices.
    """
    at, left = [0] * len(options), budget - sum(own[0].cost for own in options)
    steps = [(_slope(own[a], own[b]), i, b) for i, own in enumerate(options) for a, b in pairwise(_hull(own))]
    for slope, i, end in sorted(steps, key=lambda step: -step[0]):
        cost = options[i][end].cost - options[i][at[i]].cost
        if slope <= 0 or cost > left:
            break
        at[i], left = end, left - cost
    while True:
        following = [(i, own[at[i]], own[at[i] + 1]) for i, own in enumerate(options) if at[i] + 1 < len(own)]
        fitting = [(_slope(a, b), -i, b.cost - a.cost) for i, a, b in following if b.cost - a.cost <= left]
        slope, i, cost = max(fitting, default=(0.0, 0, 0))
        if slope <= 0:
            return [own[j] for own, j in zip(options, at, strict=True)]
        at[-i], left = at[-i] + 1, left - cost


def _slope(a: Choice, b: Choice) -> float:
    return (b.kept - a.kept) / (b.cost - a.cost)


def _hull(choices: Sequence[Choice]) -> list[int]:
    """The positions of the choices on the upper concave hull of energy over cost."""
    hull = [0]
    for i in range(1, len(choices)):
        while len(hull) > 1 and _slope(choices[hull[-2]], choices[hull[-1]]) < _slope(choices[hull[-1]], choices[i]):
            hull.pop()
        hull.append(i)
    return hull

# SPDX-License-Identifier: Apache-2.0
"""Rows ranked by how near their neighbours are."""

from __future__ import annotations

import numpy as np

from phalanx.aggregators.kernels.gram import distances
from phalanx.core.stack import Stack


def krum_ranking(stack: Stack, neighbours: int) -> np.ndarray:
    """Positions from the lowest to the highest sum of squared distances to the `neighbours` nearest other rows."""
    order = settled_order(stack)
    squared = _to_others(stack, order)
    squared.sort(axis=1)
    return order[squared[:, :neighbours].sum(axis=1).argsort(kind="stable")]


def krum_choices(stack: Stack, f: int, theta: int) -> np.ndarray:
    """Positions of theta rows, each Krum's choice among those that the earlier choices left."""
    from phalanx.aggregators.kernels.sweeps import iterated_choice

    order = settled_order(stack)
    squared = _to_others(stack, order)
    nearest = squared.argsort(axis=1, kind="stable")[:, :-1]
    return order[iterated_choice(squared, np.ascontiguousarray(nearest), f, theta)]


def settled_order(stack: Stack) -> np.ndarray:
    """Positions in an order that depends on the rows and their workers only, so that ties fall alike in any order."""
    heads = stack.rows[:, :16].double().tolist()
    return np.array(sorted(range(len(heads)), key=lambda i: (heads[i], stack.order_key(i))))


def _to_others(stack: Stack, order: np.ndarray) -> np.ndarray:
    squared = distances(stack.rows).squared[np.ix_(order, order)]
    np.fill_diagonal(squared, np.inf)
    return squared

# SPDX-License-Identifier: Apache-2.0
"""The ranking of rows by the distances to their nearest neighbours, as in Krum."""

from __future__ import annotations

import numpy as np

from phalanx.aggregators.kernels.gram import distances
from phalanx.core.stack import Stack

_FIRST = 16  # columns that decide ties


def krum_ranking(stack: Stack, neighbours: int) -> np.ndarray:
    """Positions of rows by the sum of squared distances to the `neighbours` nearest other rows, lowest first."""
    order = canonical_order(stack)
    squared = _squared_distances(stack, order)
    squared.sort(axis=1)
    return order[squared[:, :neighbours].sum(axis=1).argsort(kind="stable")]


def krum_choices(stack: Stack, f: int, theta: int) -> np.ndarray:
    """Positions of theta rows; each is Krum's choice among the rows that earlier choices left."""
    from phalanx.aggregators.kernels.sweeps import iterated_choice

    order = canonical_order(stack)
    squared = _squared_distances(stack, order)
    nearest = squared.argsort(axis=1, kind="stable")[:, :-1]
    return order[iterated_choice(squared, np.ascontiguousarray(nearest), f, theta)]


def canonical_order(stack: Stack) -> np.ndarray:
    """Positions in an order that depends on the rows and their workers only, so that it decides ties the same way."""
    first = stack.rows[:, :_FIRST].double() if stack.columns is None else stack.columns.first(stack.rows, _FIRST)
    heads = first.tolist()
    return np.array(sorted(range(len(heads)), key=lambda i: (heads[i], stack.order_key(i))))


def _squared_distances(stack: Stack, order: np.ndarray) -> np.ndarray:
    squared = distances(stack.rows, stack.columns).squared[np.ix_(order, order)]
    np.fill_diagonal(squared, np.inf)
    return squared

# SPDX-License-Identifier: Apache-2.0
"""The interface of a matcher, and its result: which neurons of several networks are the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import Expression, require


@dataclass(frozen=True)
class Matching:
    """A layer matched over J clients: L global neurons, client j with L_j of its own, rows of D entries.

    Args:
        global_rows: (L, D) in the clients' dtype, averaged by the matcher; neurons are numbered as they appear when the
            clients with most neurons come first.
        assignments: for each client (L_j,) int64, the global neuron of each local one; all different.
        counts: (L,) int64, clients that have each global neuron, >= 1.
        objective: value of the matching, higher is better; comparable for the same layers and the same matcher.
        sweeps: passes over all clients after the first one.
    """

    global_rows: Tensor
    assignments: tuple[Tensor, ...]
    counts: Tensor
    objective: float
    sweeps: int


@dataclass(frozen=True)
class Assigned:
    """The result of a matcher: for each client a label of each neuron; equal labels are one neuron."""

    labels: tuple[Tensor, ...]
    objective: float = 0.0
    sweeps: int = 0


class Matcher(Expression, ABC):
    """A rule that decides which neurons of J clients are the same."""

    @abstractmethod
    def assign(self, layers: Sequence[Tensor], bias_columns: Sequence[int], seed: int) -> Assigned:
        """The labels of all neurons, for layers that passed the checks of `match`."""

    @abstractmethod
    def posterior(self, mean: Tensor, counts: Tensor, bias_columns: Sequence[int] = ()) -> Tensor:
        """The average of each neuron as the matcher defines it, from the plain mean over the clients that have it.

        Shapes: (L, D), (L,) -> (L, D).
        Args:
            mean: plain mean of each neuron.
            counts: clients that have each neuron.
            bias_columns: the columns that are biases.
        """

    def match(self, layers: Sequence[Tensor], bias_columns: Sequence[int] = (), seed: int = 0) -> Matching:
        """Matches the layers of J clients, and averages them into one layer.

        Shapes: J of (L_j, D) -> (L, D); L is at least the largest L_j and at most their sum.
        Args:
            layers: for each client one row for each neuron, such as its incoming weights and its bias.
            bias_columns: those of the D columns that are biases.
            seed: of the order in which clients are matched again; nothing else is random.
        Raises:
            ValueError: there is no client, a layer has no neuron or no entry, the widths differ, an entry is NaN or
                Inf, or a layer is not of floating point.
        """
        layers = checked(layers, bias_columns, self.expression_name)
        assigned = self.assign(layers, bias_columns, seed)
        labels = numbered(assigned.labels)
        counts = torch.bincount(torch.cat(labels))
        sums = layers[0].new_zeros(len(counts), layers[0].shape[1], dtype=torch.float64)
        for layer, label in zip(layers, labels, strict=True):
            sums.index_add_(0, label.to(sums.device), layer.double())
        mean = sums / counts[:, None].to(sums.device)
        dtype = reduce(torch.promote_types, (layer.dtype for layer in layers))
        rows = self.posterior(mean, counts, bias_columns).to(dtype)
        return Matching(rows, labels, counts, assigned.objective, assigned.sweeps)


def checked(layers: Sequence[Tensor], bias_columns: Sequence[int], name: str) -> list[Tensor]:
    """The layers, detached, after the checks of `Matcher.match`."""
    require(len(layers) > 0, f"{name} needs at least one client, got none")
    layers = [layer.detach() for layer in layers]
    for j, layer in enumerate(layers):
        shape = tuple(layer.shape)
        require(layer.dim() == 2, f"{name} takes layers of shape (neurons, entries), got {shape} from client {j}")
        require(layer.numel() > 0, f"{name} needs neurons and entries, got a layer of shape {shape} from client {j}")
        require(
            layer.shape[1] == layers[0].shape[1],
            f"{name} needs neurons of one width, got {shape[1]} entries from client {j} "
            f"and {layers[0].shape[1]} from client 0",
        )
        require(
            layer.is_floating_point(),
            f"{name} takes floating-point layers, got {layer.dtype} from client {j}; convert it first",
        )
        # a square that overflows would make every match worth as much as any other
        finite = layer.double().square().sum(dim=1).isfinite()
        if not finite.all():
            neuron = int(finite.logical_not().nonzero()[0])
            raise ValueError(f"{name}: neuron {neuron} of client {j} has NaN, Inf or entries beyond 1e150")
    width = layers[0].shape[1]
    require(
        len(set(bias_columns)) == len(bias_columns) and all(0 <= c < width for c in bias_columns),
        f"{name}: bias_columns must be different columns from 0 to {width - 1}, got {tuple(bias_columns)}",
    )
    return layers


def by_size(layers: Sequence[Tensor]) -> list[int]:
    """The numbers of the clients, those with most neurons first."""
    return sorted(range(len(layers)), key=lambda j: -len(layers[j]))


def numbered(labels: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The same partition with labels numbered as they appear when the clients with most neurons come first."""
    order = by_size(labels)
    first, places = _firsts(torch.cat([labels[j] for j in order]))
    rank = torch.empty_like(first)
    rank[first.argsort()] = torch.arange(len(first))
    parts = rank[places].split([len(labels[j]) for j in order])
    return tuple(part for _, part in sorted(zip(order, parts, strict=True), key=lambda pair: pair[0]))


def _firsts(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The position where each different label (ascending) appears first, and the rank of the label of each entry."""
    values, places = labels.unique(return_inverse=True)
    first = torch.full_like(values, len(labels)).scatter_reduce_(0, places, torch.arange(len(labels)), "amin")
    return first, places


def linear_assignment(table: np.ndarray, maximize: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns of the linear assignment with the least or greatest sum, by SciPy.

    Shapes: (m, n) -> (min(m, n),) each.
    """
    from scipy.optimize import linear_sum_assignment  # a slow import, so only where it is used

    return linear_sum_assignment(table, maximize=maximize)

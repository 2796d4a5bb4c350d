# SPDX-License-Identifier: Apache-2.0
"""Matchings that also compare the weights between the matched neurons themselves, as in recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from phalanx.matching.matching import linear_assignment
from phalanx.matching.neuron_axes import Axes, Axis, take
from phalanx.matching.neuron_features import average_models, group_axes

# L_j neurons of client j among L places, D entries of a neuron, K square matrices such as the gates of an LSTM
_AXES: dict[str, Axes] = {"rows": (Axis(0, 0),), "squares": (Axis(1, 0), Axis(2, 0, makes=False))}


def square_weights(
    tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], group: int, settled: Set[int]
) -> Tensor | None:
    """All weights of a model between neurons of one group, such as the `weight_hh` of an LSTM; None if there are none.

    Shapes: -> (K, L, L).
    """
    matrices = []
    for name, tensor in tensors.items():
        own_axes = group_axes(axes.get(name, ()), group, settled)
        if len(own_axes) == 2:
            unfolded = tensor
            for axis in reversed(own_axes):
                unfolded = unfolded.unflatten(axis.dim, (axis.outer, axis.neurons(tensor), axis.inner))
            # the first axis has become three dimensions, so the second one is two further back
            unfolded = unfolded.movedim((own_axes[0].dim + 1, own_axes[1].dim + 3), (-2, -1))
            matrices.append(unfolded.flatten(0, -3))
    return torch.cat(matrices) if matrices else None


def refined(
    layers: Sequence[Tensor], squares: Sequence[Tensor], assignments: Sequence[Tensor], size: int, sweeps: int = 10
) -> tuple[Tensor, ...]:
    """A matching of smaller `total_distance`, in which each client keeps its set of places.

    First every client in turn is compared with the mean of those before it, then with the mean of all others, until
    nothing changes. Each comparison is a quadratic assignment problem, solved approximately by Frank-Wolfe steps over
    doubly stochastic matrices. The given matching is returned if no better one is found.

    Shapes: J of (L_j, D), of (K, L_j, L_j) and of (L_j,) -> J of (L_j,).
    Args:
        layers: for each client a row of weights for each neuron.
        squares: for each client the weights between its neurons, K matrices.
        assignments: for each client the places of its neurons, 0 to size - 1.
        size: L, the number of places.
        sweeps: passes over all clients after the first one, at most.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, section 2, which names the
        problem and leaves the recurrent weights out; Vogelstein et al., Fast Approximate Quadratic Programming for
        Graph Matching, 2015, arXiv:1112.5507. Differs: an entry weighs by the clients that share it.
    """
    weights, places = _weights(layers, squares), [positions.cpu() for positions in assignments]
    clients = range(len(weights))
    for sweep in range(sweeps + 1 if len(weights) > 1 else 0):
        before = list(places)
        for j in clients[1:] if sweep == 0 else clients:
            others = [k for k in clients if k < j or (sweep > 0 and k != j)]
            places[j] = _reordered(weights, places, j, others, size)
        if sweep > 0 and all(map(torch.equal, before, places)):
            break
    better = total_distance(layers, squares, places, size) < total_distance(layers, squares, assignments, size)
    return tuple(places) if better else tuple(assignments)


def total_distance(
    layers: Sequence[Tensor], squares: Sequence[Tensor], assignments: Sequence[Tensor], size: int
) -> float:
    """The sum over clients of the squared distances of their entries to the mean of the clients that have them.

    Shapes: as `refined`.
    """
    weights, places = _weights(layers, squares), [{0: positions.cpu()} for positions in assignments]
    mean = average_models(weights, _AXES, places, {0: size})
    return sum(
        float((tensor - take(mean[name], _AXES[name], 0, place[0])).square().sum())
        for client, place in zip(weights, places, strict=True)
        for name, tensor in client.items()
    )


def _weights(layers: Sequence[Tensor], squares: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    pairs = zip(layers, squares, strict=True)
    return [{"rows": rows.detach().cpu().double(), "squares": square.detach().cpu().double()} for rows, square in pairs]


def _reordered(
    weights: Sequence[Mapping[str, Tensor]], places: Sequence[Tensor], j: int, others: Sequence[int], size: int
) -> Tensor:
    """The places of client j, in the order of its neurons that is nearest to the mean of some other clients."""
    own = places[j]
    mean = average_models([weights[k] for k in others], _AXES, [{0: places[k]} for k in others], {0: size})
    mean_at_own = {name: take(tensor, _AXES[name], 0, own) for name, tensor in mean.items()}
    have = torch.stack([torch.zeros(size, dtype=torch.float64).index_fill_(0, places[k], 1) for k in others])[:, own]
    order = _order(weights[j], mean_at_own, have.sum(0), have.T @ have)
    return torch.empty_like(own).index_copy_(0, order, own)


def _order(client: Mapping[str, Tensor], mean: Mapping[str, Tensor], have: Tensor, both: Tensor) -> Tensor:
    """The neuron of a client that goes to each place; 0 to L_j - 1 if no order is better than the present one.

    Args:
        own: the weights of the client, "rows" and "squares".
        mean: the same of the other clients, at the places of this one.
        have: number of other clients behind each place.
        both: number of other clients behind each pair of places.
    """
    # the total distance rises by n/(n + 1) of the squared distance to the mean of n others
    near, joint = have / (have + 1), both / (both + 1)
    rows, tables = client["rows"], client["squares"]
    linear = near[:, None] * (rows.square().sum(1) - 2 * mean["rows"] @ rows.T)
    left = torch.cat([-2 * joint * mean["squares"], joint[None]])
    right = torch.cat([tables, tables.square().sum(0, keepdim=True)])
    eye = torch.eye(len(rows), dtype=torch.float64)

    def value(p: Tensor) -> float:
        return float((linear * p).sum() + (left * (p @ right @ p.T)).sum())

    size = float(linear.abs().sum() + (left * right).abs().sum())
    best, least = eye, value(eye) - 1e-12 * size
    for start in (eye, 0.5 * eye + 0.5 / len(rows)):
        permutation = _descend(start, linear, left, right)
        if value(permutation) < least:
            best, least = permutation, value(permutation)
    return best.argmax(dim=1)


def _descend(p: Tensor, linear: Tensor, left: Tensor, right: Tensor, steps: int = 30) -> Tensor:
    """A permutation matrix P with a small <linear, P> + sum_k <left_k, P right_k P^T>."""
    for _ in range(steps):
        slope = linear + (left @ p @ right.mT + left.mT @ p @ right).sum(0)
        step = _least(slope) - p
        first, second = float((slope * step).sum()), float((left * (step @ right @ step.T)).sum())
        if first >= -1e-12 * float((slope * p).abs().sum()):
            break
        reach = 1.0 if second <= 0 else min(1.0, -first / (2 * second))
        p = p + reach * step
    return _least(-p)


def _least(cost: Tensor) -> Tensor:
    """The permutation matrix of least cost."""
    rows, columns = linear_assignment(cost.numpy())
    permutation = torch.zeros_like(cost)
    permutation[rows, columns] = 1
    return permutation

# SPDX-License-Identifier: Apache-2.0
"""Matchings that also look at the weights between the matched neurons themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor

from phalanx.core.neuron_axes import Axes, Axis, picked
from phalanx.matching.matching import linear_assignment
from phalanx.matching.neuron_features import averaged, axes_in

# L_j neurons of client j among L places, D entries of a neuron, K square matrices such as the gates of an LSTM
_AXES: dict[str, Axes] = {"rows": (Axis(0, 0),), "squares": (Axis(1, 0), Axis(2, 0, makes=False))}


def squares(tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], group: int, settled: Set[int]) -> Tensor | None:
    """All weights of a model between the neurons of one group, such as an LSTM's `weight_hh`; None if there are none.

    Shapes: -> (K, L, L).
    """
    found = []
    for name, tensor in tensors.items():
        own = axes_in(axes.get(name, ()), group, settled)
        if len(own) == 2:
            made = tensor
            for axis in reversed(own):
                made = made.unflatten(axis.dim, (axis.outer, axis.neurons(tensor), axis.inner))
            # every dimension before has become three
            made = made.movedim((own[0].dim + 1, own[1].dim + 3), (-2, -1))
            found.append(made.flatten(0, -3))
    return torch.cat(found) if found else None


def refined(
    layers: Sequence[Tensor], squares: Sequence[Tensor], assignments: Sequence[Tensor], size: int, sweeps: int = 10
) -> tuple[Tensor, ...]:
    """A matching in which each client has its neurons at the same places in an order of less `spread`.

    First every client in turn against the mean of those before it, then against that of all others, until nothing
    changes: a quadratic assignment problem, solved approximately by Frank-Wolfe steps over doubly stochastic matrices.
    The given matching is kept if that found none of less spread.

    Shapes: J of (L_j, D), of (K, L_j, L_j) and of (L_j,) -> J of (L_j,).
    Args:
        size: L.
        sweeps: at most.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, section 2, which names the
        problem and leaves the recurrent weights out; Vogelstein et al., Fast Approximate Quadratic Programming for
        Graph Matching, 2015, arXiv:1112.5507. Differs: an entry weighs by the clients that share it.
    """
    parts, places = _parts(layers, squares), [at.cpu() for at in assignments]
    everybody = range(len(parts))
    for sweep in range(sweeps + 1 if len(parts) > 1 else 0):
        before = list(places)
        for j in everybody[1:] if sweep == 0 else everybody:
            others = [k for k in everybody if k < j or (sweep > 0 and k != j)]
            places[j] = _rearranged(parts, places, j, others, size)
        if sweep > 0 and all(map(torch.equal, before, places)):
            break
    better = spread(layers, squares, places, size) < spread(layers, squares, assignments, size)
    return tuple(places) if better else tuple(assignments)


def spread(layers: Sequence[Tensor], squares: Sequence[Tensor], assignments: Sequence[Tensor], size: int) -> float:
    """The sum over clients of the squared distances of all their entries to the mean of those who have them.

    Shapes: as `refined`.
    """
    parts, places = _parts(layers, squares), [{0: at.cpu()} for at in assignments]
    mean = averaged(parts, _AXES, places, {0: size})
    return sum(
        float((tensor - picked(mean[name], _AXES[name], 0, place[0])).square().sum())
        for part, place in zip(parts, places, strict=True)
        for name, tensor in part.items()
    )


def _parts(layers: Sequence[Tensor], squares: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    pairs = zip(layers, squares, strict=True)
    return [{"rows": rows.detach().cpu().double(), "squares": square.detach().cpu().double()} for rows, square in pairs]


def _rearranged(
    parts: Sequence[Mapping[str, Tensor]], places: Sequence[Tensor], j: int, others: Sequence[int], size: int
) -> Tensor:
    """Client j's neurons at its places, in the order that suits the mean of some others."""
    at = places[j]
    mean = averaged([parts[k] for k in others], _AXES, [{0: places[k]} for k in others], {0: size})
    have = torch.stack([torch.zeros(size, dtype=torch.float64).index_fill_(0, places[k], 1) for k in others])[:, at]
    order = _order(
        parts[j], {name: picked(t, _AXES[name], 0, at) for name, t in mean.items()}, have.sum(0), have.T @ have
    )
    return torch.empty_like(at).index_copy_(0, order, at)


def _order(own: Mapping[str, Tensor], mean: Mapping[str, Tensor], have: Tensor, both: Tensor) -> Tensor:
    """Which of a client's neurons goes to each place of a mean, 0 to L_j - 1 where none is better than the present.

    Args:
        have: other clients behind each place.
        both: other clients behind each pair of places.
    """
    # the spread rises by n/(n + 1) of the squared distance to the mean of n others
    near, joint = have / (have + 1), both / (both + 1)
    rows, tables = own["rows"], own["squares"]
    linear = near[:, None] * (rows.square().sum(1) - 2 * mean["rows"] @ rows.T)
    left = torch.cat([-2 * joint * mean["squares"], joint[None]])
    right = torch.cat([tables, tables.square().sum(0, keepdim=True)])
    eye = torch.eye(len(rows), dtype=torch.float64)

    def value(p: Tensor) -> float:
        return float((linear * p).sum() + (left * (p @ right @ p.T)).sum())

    size = float(linear.abs().sum() + (left * right).abs().sum())
    best, least = eye, value(eye) - 1e-12 * size
    for start in (eye, 0.5 * eye + 0.5 / len(rows)):
        found = _descend(start, linear, left, right)
        if value(found) < least:
            best, least = found, value(found)
    return best.argmax(dim=1)


def _descend(p: Tensor, linear: Tensor, left: Tensor, right: Tensor, steps: int = 30) -> Tensor:
    """A permutation of small <linear, P> + sum_k <left_k, P right_k P^T>."""
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
    made = torch.zeros_like(cost)
    made[rows, columns] = 1
    return made

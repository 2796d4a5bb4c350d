# SPDX-License-Identifier: Apache-2.0
"""The weights by which a neuron is compared with others, and the mean of models whose neurons are in one order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import Tensor

from phalanx.matching.neuron_axes import OUTPUTS, Axes, Axis, scatter


def neuron_features(
    tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], group: int, settled: Set[int], outgoing: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """One row for each neuron of a group, with all weights that make it, and the columns of the row that are biases.

    Not in the row: tensors with another axis that is not settled, weights between the neurons of the group itself with
    the biases that belong to them (`bias_hh`), and running statistics.

    Shapes: -> (L, D).
    Args:
        tensors: of one model; a tensor with two names appears once.
        axes: the neuron axes of each tensor, by its name.
        group: number of the group.
        settled: groups whose neurons are in their places; OUTPUTS always are.
        outgoing: whether the weights from the neurons into settled groups follow behind the others.
    Raises:
        ValueError: no tensor describes these neurons.
    """
    rows: list[Tensor] = []
    bias_columns: list[int] = []
    column = 0
    for makes in (True, False) if outgoing else (True,):
        for name, tensor in tensors.items():
            leaf = name.rpartition(".")[2]
            own_axes = group_axes(axes.get(name, ()), group, settled)
            if len(own_axes) != 1 or own_axes[0].makes != makes or leaf.startswith(("running_", "bias_hh")):
                continue
            rows.append(own_axes[0].neurons_first(tensor))
            end = column + rows[-1].shape[1]
            if tensor.dim() == 1 and leaf.startswith("bias"):
                bias_columns += range(column, end)
            column = end
    if not rows:
        raise ValueError(f"no weight makes the neurons of group {group} out of settled ones; match other groups first")
    return torch.cat(rows, dim=1), tuple(bias_columns)


def features_of_models(
    models: Sequence[Mapping[str, Tensor]], axes: Mapping[str, Axes], group: int, settled: Set[int], outgoing: bool
) -> tuple[list[Tensor], tuple[int, ...]]:
    """The rows of `neuron_features` for each of several models, and the columns that are biases.

    Outgoing weights are scaled by one factor, so that over all models the sum of their squares equals that of the
    weights that make the neurons. Without it, ten outputs would count little beside hundreds of inputs.

    Shapes: -> for each model (L_j, D).
    Args:
        models: the tensors of each model; a tensor with two names appears once.
        axes, group, settled, outgoing: as in `neuron_features`.
    Raises:
        ValueError: as `neuron_features`.
    """
    features = [neuron_features(tensors, axes, group, settled, outgoing) for tensors in models]
    rows, bias_columns = [row for row, _ in features], features[0][1]
    if not outgoing:
        return rows, bias_columns
    width = neuron_features(models[0], axes, group, settled)[0].shape[1]
    squares = torch.stack([row.double().square().sum(dim=0) for row in rows]).sum(dim=0)
    incoming_sum, outgoing_sum = float(squares[:width].sum()), float(squares[width:].sum())
    factors = torch.ones_like(rows[0][0])
    factors[width:] = (incoming_sum / outgoing_sum) ** 0.5 if outgoing_sum > 0 else 1.0
    return [row * factors for row in rows], bias_columns


def average_models(
    models: Sequence[Mapping[str, Tensor]],
    axes: Mapping[str, Axes],
    places: Sequence[Mapping[int, Tensor]],
    sizes: Mapping[int, int],
    weights: Sequence[float] | None = None,
    padded: bool = False,
) -> dict[str, Tensor]:
    """The mean of the tensors of several models; each entry over the models that have it, and zero where none has.

    A model has a weight between two neurons if it has both. With `padded` it has the weight as soon as it has the
    neuron that the weight makes: from a neuron that it lacks, its weight is zero.

    Args:
        models: the tensors of each model, in its own order of neurons.
        axes: the neuron axes of each tensor, by its name.
        places: for each model, the places in the mean of the neurons of each group; a group that is not given stays.
        sizes: neurons of each of these groups in the mean.
        weights: of the models, > 0; equal by default.
        padded: whether the result is the mean of the models' functions where their neurons are equal, even if some
            models lack some of them.
    """
    weights = [1.0] * len(models) if weights is None else weights
    means: dict[str, Tensor] = {}
    for name in models[0]:
        tensor_axes = axes.get(name, ())
        total, count = 0.0, 0.0
        for tensors, place, weight in zip(models, places, weights, strict=True):
            tensor = tensors[name]
            for group, positions in place.items():
                tensor = scatter(tensor, tensor_axes, group, positions, sizes[group])
            total = total + weight * tensor
            count = count + weight * presence(tensor, [axis for axis in tensor_axes if axis.makes or not padded], place)
        means[name] = torch.where(torch.as_tensor(count) > 0, total / count, 0.0).to(models[0][name].dtype)
    return means


def presence(tensor: Tensor, axes: Iterable[Axis], places: Mapping[int, Tensor]) -> Tensor:
    """Ones where a model has the neurons of an entry along these axes, zeros elsewhere.

    Shapes: -> a shape that broadcasts to that of the tensor.
    Args:
        tensor: a tensor whose neurons are in their places already.
        axes: the axes to look at.
        places: the places of the model's neurons in each group; -1 for a neuron that was dropped.
    """
    mask = tensor.new_ones(())
    for axis in axes:
        if axis.group in places:
            positions = places[axis.group].to(tensor.device)
            flags = tensor.new_zeros(axis.neurons(tensor)).index_fill_(0, positions[positions >= 0], 1.0)
            shape = [-1 if dim == axis.dim else 1 for dim in range(tensor.dim())]
            mask = mask * flags.repeat_interleave(axis.inner).repeat(axis.outer).reshape(shape)
    return mask


def group_axes(axes: Axes, group: int, settled: Set[int]) -> Axes:
    """The axes of a tensor that run over a group; none if the tensor has an axis of another group not settled."""
    chosen = tuple(axis for axis in axes if axis.group == group)
    others = {axis.group for axis in axes} - {group}
    return chosen if others <= settled | {OUTPUTS} else ()

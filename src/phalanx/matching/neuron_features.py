# SPDX-License-Identifier: Apache-2.0
"""What is known of each neuron of a group, and the mean of models whose neurons have found their places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import Tensor

from phalanx.core.neuron_axes import OUTPUTS, Axes, Axis, scattered


def features(
    tensors: Mapping[str, Tensor], axes: Mapping[str, Axes], group: int, settled: Set[int], outgoing: bool = False
) -> tuple[Tensor, tuple[int, ...]]:
    """A row for each neuron of a group, of all weights that make it, and the columns that hold biases.

    Left out are tensors of which another axis is not settled, those between the neurons of the group themselves with
    the biases beside them (`bias_hh`), and running statistics.

    Shapes: -> (L, D).
    Args:
        tensors: of one model, each once, also where it has two names.
        settled: groups whose neurons are in their places; OUTPUTS always are.
        outgoing: weights by which the neurons go into settled groups stand behind the others.
    Raises:
        ValueError: no tensor tells anything of these neurons.
    """
    rows: list[Tensor] = []
    biases: list[int] = []
    column = 0
    for makes in (True, False) if outgoing else (True,):
        for name, tensor in tensors.items():
            leaf = name.rpartition(".")[2]
            own = axes_in(axes.get(name, ()), group, settled)
            if len(own) != 1 or own[0].makes != makes or leaf.startswith(("running_", "bias_hh")):
                continue
            rows.append(own[0].neurons_first(tensor))
            end = column + rows[-1].shape[1]
            if tensor.dim() == 1 and leaf.startswith("bias"):
                biases += range(column, end)
            column = end
    if not rows:
        raise ValueError(f"no weight makes the neurons of group {group} out of settled ones; match other groups first")
    return torch.cat(rows, dim=1), tuple(biases)


def known(
    parts: Sequence[Mapping[str, Tensor]], axes: Mapping[str, Axes], group: int, settled: Set[int], outgoing: bool
) -> tuple[list[Tensor], tuple[int, ...]]:
    """The rows of several models, and the columns that hold biases.

    Outgoing weights are scaled by one factor, so that over all models their squares sum to those of the weights that
    make the neurons. Else ten outputs would say little beside hundreds of inputs.

    Shapes: -> for each model (L_j, D).
    Args:
        parts: tensors of each model, each once.
    """
    found = [features(part, axes, group, settled, outgoing) for part in parts]
    rows, biases = [row for row, _ in found], found[0][1]
    if not outgoing:
        return rows, biases
    width = features(parts[0], axes, group, settled)[0].shape[1]
    squares = torch.stack([row.double().square().sum(dim=0) for row in rows]).sum(dim=0)
    making, going = float(squares[:width].sum()), float(squares[width:].sum())
    factors = torch.ones_like(rows[0][0])
    factors[width:] = (making / going) ** 0.5 if going > 0 else 1.0
    return [row * factors for row in rows], biases


def averaged(
    parts: Sequence[Mapping[str, Tensor]],
    axes: Mapping[str, Axes],
    places: Sequence[Mapping[int, Tensor]],
    sizes: Mapping[int, int],
    weights: Sequence[float] | None = None,
    padded: bool = False,
) -> dict[str, Tensor]:
    """The mean of several models' tensors, each entry over the models that have it; zero where none has.

    A model has a weight between two neurons if it has both, or, padded, if it has the one that the weight makes: from a
    neuron that it lacks, its weight is zero.

    Args:
        parts: tensors of each model, in its own order.
        places: for each model, where the neurons of its groups stand in the mean; groups that are not here stay.
        sizes: neurons of these groups in the mean.
        weights: of the models, > 0; equal by default.
        padded: the mean of the models' functions where neurons are equal, whoever lacks some of them.
    """
    weights = [1.0] * len(parts) if weights is None else weights
    made: dict[str, Tensor] = {}
    for name in parts[0]:
        own = axes.get(name, ())
        total, count = 0.0, 0.0
        for part, place, weight in zip(parts, places, weights, strict=True):
            tensor = part[name]
            for group, at in place.items():
                tensor = scattered(tensor, own, group, at, sizes[group])
            total = total + weight * tensor
            count = count + weight * present(tensor, [axis for axis in own if axis.makes or not padded], place)
        made[name] = torch.where(torch.as_tensor(count) > 0, total / count, 0.0).to(parts[0][name].dtype)
    return made


def present(tensor: Tensor, axes: Iterable[Axis], places: Mapping[int, Tensor]) -> Tensor:
    """Ones where a tensor has the neurons of an entry along these axes, zeros elsewhere; broadcasts to its shape.

    Args:
        tensor: whose neurons stand at these places already.
    """
    made = tensor.new_ones(())
    for axis in axes:
        if axis.group in places:
            at = places[axis.group].to(tensor.device)
            flags = tensor.new_zeros(axis.neurons(tensor)).index_fill_(0, at[at >= 0], 1.0)
            shape = [-1 if dim == axis.dim else 1 for dim in range(tensor.dim())]
            made = made * flags.repeat_interleave(axis.inner).repeat(axis.outer).reshape(shape)
    return made


def axes_in(axes: Axes, group: int, settled: Set[int]) -> Axes:
    """The axes of a tensor in the group; none if it has others that are not settled."""
    own = tuple(axis for axis in axes if axis.group == group)
    others = {axis.group for axis in axes} - {group}
    return own if others <= settled | {OUTPUTS} else ()

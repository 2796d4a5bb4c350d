# SPDX-License-Identifier: Apache-2.0
"""A network with more or fewer neurons."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from phalanx.core.module_tensors import replace_tensors
from phalanx.core.neuron_axes import Axes
from phalanx.matching.graph import Graph
from phalanx.matching.trace import named_tensors


def resized(model: nn.Module, graph: Graph, sizes: Mapping[int, int]) -> nn.Module:
    """A copy of a model whose groups have these sizes: the first neurons are those of the model, further ones zeros.

    Raises:
        ValueError: a size is below 1, of a group that the graph does not have, or unlike one that it must be like.
    """
    for group, size in sizes.items():
        if not 0 <= group < len(graph.sizes) or size < 1:
            raise ValueError(f"groups 0 to {len(graph.sizes) - 1} can have sizes >= 1, got {size} for group {group}")
    uneven = [group for group, size in graph.levelled(sizes).items() if size != sizes.get(group, graph.sizes[group])]
    if uneven:
        names = ", ".join(graph.names[group] for group in uneven)
        raise ValueError(f"{names} must be as large as the layers beside them; give graph.levelled(sizes)")
    made = copy.deepcopy(model)
    axes = {**graph.axes, **graph.unsaved}
    old = {name: t for name, t in named_tensors(made) if any(axis.group in sizes for axis in axes[name])}
    replace_tensors(made, {name: _fitted(tensor.detach(), axes[name], sizes) for name, tensor in old.items()})
    return made


def _fitted(tensor: Tensor, axes: Axes, sizes: Mapping[int, int]) -> Tensor:
    for axis in axes:
        if axis.group in sizes:
            first = torch.arange(min(sizes[axis.group], axis.neurons(tensor)))
            tensor = axis.scatter(axis.pick(tensor, first), first, sizes[axis.group])
    return tensor

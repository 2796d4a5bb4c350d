# SPDX-License-Identifier: Apache-2.0
"""Removes channels from a network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from phalanx.core.module_tensors import replace_tensors
from phalanx.lowrank.pruning.chains import chains

Kept = Mapping[str, Sequence[int]]  # for each BatchNorm, by name: its channels that stay, ascending
Cuts = dict[str, dict[int, Tensor]]  # for each parameter or buffer, by name: the entries of a dimension that stay


def slim(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of the model with the kept channels only, in convolutions, BatchNorms and the layers that read them.

    It is the same function as the model with the scale and shift of all other channels set to zero.

    Raises:
        ValueError: as `cuts_of`.
    """
    thinner = copy.deepcopy(model)
    tensors = {**dict(thinner.named_parameters()), **dict(thinner.named_buffers())}
    replace_tensors(thinner, {name: cut(tensors[name], cuts) for name, cuts in cuts_of(model, kept).items()})
    return thinner


def cuts_of(model: nn.Module, kept: Kept) -> Cuts:
    """The entries that stay of each parameter and buffer that changes.

    Raises:
        ValueError: `kept` names a BatchNorm whose channels cannot be removed.
    """
    known = {chain.norm: chain for chain in chains(model)}
    unknown = [name for name in kept if name not in known]
    if unknown:
        raise ValueError(f"the channels of {', '.join(unknown)} cannot be removed; choose from {', '.join(known)}")
    cuts: Cuts = {}
    for name, channels in kept.items():
        chain, norm = known[name], model.get_submodule(name)
        width = len(norm.get_parameter("weight"))
        stay = torch.tensor(channels)
        for path in (chain.source, name):
            layer = model.get_submodule(path)
            for leaf, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                if tensor.dim():  # BatchNorm's count of batches has none
                    cuts.setdefault(f"{path}.{leaf}", {})[0] = stay
        for path in chain.readers:
            # a flattened channel has several columns
            each = model.get_submodule(path).get_parameter("weight").shape[1] // width
            columns = (stay[:, None] * each + torch.arange(each)).flatten()
            cuts.setdefault(f"{path}.weight", {})[1] = columns
    return cuts


def cut(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    """The entries of a tensor that stay."""
    for dim, stay in cuts.items():
        tensor = tensor.index_select(dim, stay.to(tensor.device))
    return tensor

# SPDX-License-Identifier: Apache-2.0
"""A network without some of its channels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from phalanx.core.module_tensors import replace_tensors
from phalanx.lowrank.pruning.chains import chains

Kept = Mapping[str, Sequence[int]]  # by the name of a BatchNorm: its channels that stay, ascending
Cuts = dict[str, dict[int, Tensor]]  # by the name of a parameter or buffer: what stays of a dimension


def slim(model: nn.Module, kept: Kept) -> nn.Module:
    """A copy of the model with the kept channels only: thinner convolutions, BatchNorms and layers behind them.

    It is the function that the model is with scale and shift of all other channels set to zero.

    Raises:
        ValueError: as `cuts_of`.
    """
    made = copy.deepcopy(model)
    tensors = {**dict(made.named_parameters()), **dict(made.named_buffers())}
    replace_tensors(made, {name: cut(tensors[name], cuts) for name, cuts in cuts_of(model, kept).items()})
    return made


def cuts_of(model: nn.Module, kept: Kept) -> Cuts:
    """What stays of each parameter and buffer that changes.

    Raises:
        ValueError: `kept` names a BatchNorm whose channels cannot be taken out.
    """
    known = {chain.norm: chain for chain in chains(model)}
    strange = [name for name in kept if name not in known]
    if strange:
        raise ValueError(f"the channels of {', '.join(strange)} cannot be taken out; choose from {', '.join(known)}")
    found: Cuts = {}
    for name, channels in kept.items():
        chain, norm = known[name], model.get_submodule(name)
        width = len(norm.get_parameter("weight"))
        stay = torch.tensor(channels)
        for path in (chain.source, name):
            layer = model.get_submodule(path)
            for leaf, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
                if tensor.dim():  # BatchNorm's count of batches has none
                    found.setdefault(f"{path}.{leaf}", {})[0] = stay
        for path in chain.readers:
            # a flattened channel is several columns
            each = model.get_submodule(path).get_parameter("weight").shape[1] // width
            columns = (stay[:, None] * each + torch.arange(each)).flatten()
            found.setdefault(f"{path}.weight", {})[1] = columns
    return found


def cut(tensor: Tensor, cuts: Mapping[int, Tensor]) -> Tensor:
    """What stays of a tensor."""
    for dim, stay in cuts.items():
        tensor = tensor.index_select(dim, stay.to(tensor.device))
    return tensor

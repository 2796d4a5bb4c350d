# SPDX-License-Identifier: Apache-2.0
"""Replacing the tensors of a module by tensors of other shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from phalanx.core._torch_private import ConvBase, ConvTransposeBase, NormBase


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replaces tensors of a model by tensors of other shapes, and updates the sizes that its layers state.

    A parameter stays a parameter. A tensor with several names stays one tensor if all of its names are given.
    """
    owners = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tensors}
    old_tensors = {name: getattr(*owner) for name, owner in owners.items()}
    new_tensors: dict[int, Tensor] = {}  # by the old tensor's identity
    for name, owner in owners.items():
        old, tensor = old_tensors[name], tensors[name].detach()
        if id(old) not in new_tensors:
            new_tensors[id(old)] = nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor
        setattr(*owner, new_tensors[id(old)])
    _update_sizes(model)


def _update_sizes(model: nn.Module) -> None:
    """Sets the sizes that the layers of a model state, such as `in_features`, to those of their tensors."""
    for layer in model.modules():
        if isinstance(layer, ConvBase):
            if 1 < layer.groups == layer.in_channels == layer.out_channels:
                layer.groups = len(layer.weight)  # one group for every channel
            sides = len(layer.weight), layer.weight.shape[1] * layer.groups
            layer.in_channels, layer.out_channels = sides if isinstance(layer, ConvTransposeBase) else sides[::-1]
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.Embedding):
            layer.num_embeddings, layer.embedding_dim = layer.weight.shape
        elif isinstance(layer, nn.RNNBase):
            layer.input_size, layer.hidden_size = (getattr(layer, f"weight_{x}_l0").shape[1] for x in ("ih", "hh"))
        elif isinstance(layer, nn.RNNCellBase):
            layer.input_size, layer.hidden_size = layer.weight_ih.shape[1], layer.weight_hh.shape[1]
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = len(layer.weight)
        elif isinstance(layer, NormBase):
            known = [tensor for tensor in (layer.weight, layer.running_mean) if tensor is not None]
            layer.num_features = len(known[0]) if known else layer.num_features
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm) and layer.weight is not None:
            layer.normalized_shape = tuple(layer.weight.shape)
        elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
            layer.num_channels = len(layer.weight)

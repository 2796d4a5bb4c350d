# SPDX-License-Identifier: Apache-2.0
"""Modules whose tensors have got other shapes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from phalanx.core._torch_private import ConvBase, ConvTransposeBase, NormBase


def replace_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts tensors of other shapes in the places of those of these names, and tells the layers.

    A parameter stays a parameter, and a tensor of several names one tensor, if all of them are given.
    """
    places = {name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in tensors}
    old = {name: getattr(*place) for name, place in places.items()}
    new: dict[int, Tensor] = {}  # by the old tensor's identity
    for name, place in places.items():
        was, tensor = old[name], tensors[name].detach()
        if id(was) not in new:
            new[id(was)] = nn.Parameter(tensor, was.requires_grad) if isinstance(was, nn.Parameter) else tensor
        setattr(*place, new[id(was)])
    _tell_shapes(model)


def _tell_shapes(model: nn.Module) -> None:
    """Sets what the layers of a model say of their sizes, such as `in_features`, to those of their tensors."""
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

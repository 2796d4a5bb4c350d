# SPDX-License-Identifier: Apache-2.0
"""Finds channels that can be removed: those between a convolution with BatchNorm and the layers that read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from phalanx.lowrank.layer_types import parameter_names

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# these treat every channel alone and alike, and map zeros to zeros
_POOLS = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh, nn.Identity)
_CHANNELWISE: frozenset[Any] = frozenset(
    {*_ACTIVATIONS, *_DROPOUTS, *(getattr(nn, f"{pool}{k}d") for pool in _POOLS for k in (1, 2, 3))}
    | {F.relu, torch.relu, F.leaky_relu, F.elu, F.silu, F.gelu, F.hardswish, torch.tanh, F.dropout, F.max_pool2d}
    | {F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, "relu", "tanh"}
)


@dataclass(frozen=True)
class Chain:
    """Channels that one layer makes, one BatchNorm scales, and only convolutions and linear layers read.

    Args:
        source: name of the layer that makes the channels.
        norm: name of the BatchNorm.
        readers: names of the layers that read them.
    """

    source: str
    norm: str
    readers: tuple[str, ...]


def chains(model: nn.Module) -> list[Chain]:
    """All chains of a model, in the order of its forward.

    No chain contains convolutions with groups, layers that are called twice or share parameters, or channels that are
    added to others, concatenated or returned by the model. So the residual streams of a network keep their width.

    Raises:
        ValueError: torch.fx cannot follow the model's forward.
    """
    graph, modules = _trace(model), dict(model.named_modules(remove_duplicate=False))
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    names = parameter_names(model)

    def alone(node: fx.Node) -> bool:
        own_parameters = modules[str(node.target)].parameters(recurse=False)
        return calls[node.target] == 1 and all(len(names[id(p)]) == 1 for p in own_parameters)

    def kind(node: Any) -> Any:
        """The class of the module that is called, the function, or the method's name."""
        if not isinstance(node, fx.Node):
            return None
        return type(modules[str(node.target)]) if node.op == "call_module" else node.target

    def dense(node: fx.Node) -> bool:
        whole = kind(node) in _CONVOLUTIONS and getattr(modules[str(node.target)], "groups", 0) == 1
        return whole and alone(node)

    def readers(node: fx.Node, flat: bool) -> Iterator[str | None]:
        """The names of the layers that read a node; None for any other operation."""
        for user in node.users:
            first = bool(user.args) and user.args[0] is node and user.all_input_nodes == [node]
            if first and kind(user) in _CHANNELWISE:
                yield from readers(user, flat)
            elif first and not flat and _flattens(user, modules):
                yield from readers(user, True)
            elif (dense(user) and not flat) or (kind(user) is nn.Linear and flat and alone(user)):
                yield str(user.target)
            else:
                yield None

    chain_list = []
    for node in graph.nodes:
        source = node.args[0] if kind(node) in _NORMS else None
        if not (isinstance(source, fx.Node) and dense(source) and alone(node) and len(source.users) == 1):
            continue
        behind = list(dict.fromkeys(readers(node, False)))
        if behind and None not in behind and modules[str(node.target)].affine:
            chain_list.append(Chain(str(source.target), str(node.target), tuple(str(name) for name in behind)))
    return chain_list


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())


def _trace(model: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(model)
    except Exception as error:  # a model's own forward may raise anything while it is traced
        name = type(model).__name__
        raise ValueError(
            f"torch.fx cannot follow the forward of {name}, so its channels stay unknown ({error}); "
            "choose a network without branches on its values"
        ) from error


def _flattens(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node flattens all dimensions from the channels on."""
    if node.op == "call_module":
        layer = modules[str(node.target)]
        return isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1)
    return node.target in (torch.flatten, "flatten") and node.args[1:] == (1,) and not node.kwargs

# SPDX-License-Identifier: Apache-2.0
"""Keeps `nn.TransformerEncoder` from handing weights that are not there to its fused kernel."""

from __future__ import annotations

from torch import nn

from phalanx.lowrank.layer import LowRank

_BEFORE = "_before_low_rank"


def settle(model: nn.Module) -> nn.Module:
    """The model with every encoder's switch for the fused kernel set: off over low-rank layers, else as it was.

    In evaluation mode an encoder layer reads the weights of its children and calls one kernel with them, and the
    encoder packs padded batches into nested tensors before the first layer; neither is right for factors.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _switch(module, "use_nested_tensor", False)
        elif isinstance(module, nn.TransformerEncoderLayer):
            _switch(module, "activation_relu_or_gelu", 0)
    return model


def _switch(module: nn.Module, name: str, off: object) -> None:
    low = any(isinstance(part, LowRank) for part in module.modules())
    if low and not hasattr(module, _BEFORE):
        setattr(module, _BEFORE, getattr(module, name))
        setattr(module, name, off)
    elif not low and hasattr(module, _BEFORE):
        setattr(module, name, getattr(module, _BEFORE))
        delattr(module, _BEFORE)

# SPDX-License-Identifier: Apache-2.0
"""Switches off the fused kernel of `nn.TransformerEncoder` over low-rank layers, which lack the weights it reads."""

from __future__ import annotations

from torch import nn

from phalanx.lowrank.layer import LowRank

_BEFORE = "_before_low_rank"


def set_fast_path(model: nn.Module) -> nn.Module:
    """The model with the fused kernel of every encoder off if it holds low-rank layers, and as before otherwise.

    In evaluation mode an encoder layer calls one kernel with the weights of its children, and the encoder packs padded
    batches into nested tensors before the first layer. Both fail for factors.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            _switch(module, "use_nested_tensor", False)
        elif isinstance(module, nn.TransformerEncoderLayer):
            _switch(module, "activation_relu_or_gelu", 0)
    return model


def _switch(module: nn.Module, name: str, off: object) -> None:
    """Sets an attribute to `off` if a layer inside is of low rank, and back to its first value if none is."""
    low = any(isinstance(part, LowRank) for part in module.modules())
    if low and not hasattr(module, _BEFORE):
        setattr(module, _BEFORE, getattr(module, name))
        setattr(module, name, off)
    elif not low and hasattr(module, _BEFORE):
        setattr(module, name, getattr(module, _BEFORE))
        delattr(module, _BEFORE)

# SPDX-License-Identifier: Apache-2.0
"""Layers with given weights instead of random ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A layer with these weights, in float64. Shapes: (out, in), (out,)."""
    # a layer that is not on the meta device draws its weights, and takes numbers from the caller's generator
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer

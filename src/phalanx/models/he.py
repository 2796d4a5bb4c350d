# SPDX-License-Identifier: Apache-2.0
"""He's initialization, for deep networks without BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn


def draw_he(layers: Iterable[nn.Module], mode: Literal["fan_in", "fan_out"]) -> None:
    """Initialises the weights of convolutions and linear layers from torch's global generator; biases become 0.

    PyTorch's own initialization shrinks the signal at every layer, and a network of nine layers learns nothing.

    Args:
        mode: "fan_in" keeps the size of the signal, "fan_out" that of the gradient.
    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv:1502.01852, section 2.2.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

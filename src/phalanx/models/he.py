# SPDX-License-Identifier: Apache-2.0
"""He's initialization, for deep networks without BatchNorm."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def draw_he(layers: Iterable[nn.Module]) -> None:
    """Draws the weights of convolutions and linear layers anew, from torch's global generator; biases become 0.

    PyTorch's own initialization shrinks the signal at every layer, and nine of them learn nothing.

    Source: He et al., Delving Deep into Rectifiers, 2015, arXiv:1502.01852, section 2.2, backward case.
    """
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

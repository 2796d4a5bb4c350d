# SPDX-License-Identifier: Apache-2.0
"""Networks of fully connected layers."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from phalanx.core.expression import method, require
from phalanx.data.shape import Features
from phalanx.models.model import Model, Shape


@method("mlp", "model")
class Mlp(Model):
    """Fully connected layers with ReLU between them.

    Shapes: (B, C, H, W) or (B, F) -> (B, num_classes).
    Args:
        hidden: widths of the hidden layers, each >= 1; () makes a linear classifier.
    """

    hidden: tuple[int, ...] = (64,)

    def validate(self) -> None:
        require(all(width >= 1 for width in self.hidden), f"mlp needs hidden widths >= 1, got hidden={self.hidden}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        inputs = shape.count if isinstance(shape, Features) else math.prod(self.image(shape))
        for a, b in pairwise((inputs, *self.hidden, num_classes)):
            layers += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


@method("fc", "model")
class Fc(Model):
    """The dissertation's FC, with two hidden layers of 800 and 500: 1,033,510 parameters on MNIST.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Source: Wang, Toward Robust and Communication Efficient Distributed Machine Learning, 2021, Table 6.1.
    """

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return Mlp((800, 500)).build(self.image(shape), num_classes)

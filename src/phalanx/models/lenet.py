# SPDX-License-Identifier: Apache-2.0
"""LeNet, a small convolutional network for digits."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from phalanx.core.expression import method, require
from phalanx.models.model import Model, Shape


@method("lenet", "model")
class Lenet(Model):
    """Two 5x5 convolutions without padding, each with 2x2 max-pooling, then two fully connected layers.

    It has 431,080 parameters on MNIST; 11,978 with channels=(8, 16), hidden=32. Images have at least 16x16 pixels.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        channels: number of channels of the two convolutions, >= 1.
        hidden: width of the first fully connected layer, >= 1.
    Source: LeCun et al., Gradient-based learning applied to document recognition, 1998, in the widths of Caffe's
        example. Differs: ReLU also after the convolutions.
    """

    channels_last: ClassVar[bool] = True

    channels: tuple[int, int] = (20, 50)
    hidden: int = 500

    def validate(self) -> None:
        sizes = (*self.channels, self.hidden)
        require(min(sizes) >= 1, f"lenet needs channels and hidden >= 1, got {self.channels} and {self.hidden}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        c, h, w = self.image(shape)
        a, b = self.channels
        height, width = (((side - 4) // 2 - 4) // 2 for side in (h, w))
        ok = height >= 1 and width >= 1
        require(ok, f"lenet needs images of at least 16x16 pixels, got {h}x{w}; choose mlp() or resnet18()")
        return nn.Sequential(
            nn.Conv2d(c, a, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Conv2d(a, b, 5),
            nn.MaxPool2d(2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(b * height * width, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, num_classes),
        )

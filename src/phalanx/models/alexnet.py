# SPDX-License-Identifier: Apache-2.0
"""AlexNet, the convolutional network for ImageNet."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from phalanx.core.expression import method, require
from phalanx.models.he import draw_he
from phalanx.models.model import Model, Shape


@method("alexnet", "model")
class Alexnet(Model):
    """The AlexNet of ImageNet, on images that it enlarges to 224x224 pixels: 57,044,810 parameters on CIFAR-10.

    It has 61,100,840 parameters with 1,000 classes. Images may have any size; the network resizes them bilinearly.

    Shapes: (B, C, H, W) -> (B, num_classes).

    Args:
        dropout: probability of dropout before both hidden layers, in [0, 1); 0 makes the gradient a function of the
            samples alone.
    Source: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, arXiv:1404.5997, in the
        widths of torchvision, which are usual in PyTorch. Differs: dropout 0 where the paper has 0.5, and
        He's initialization.
    """

    channels_last: ClassVar[bool] = True

    dropout: float = 0.0

    def validate(self) -> None:
        require(0 <= self.dropout < 1, f"alexnet needs dropout in [0, 1), got dropout={self.dropout}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        layers = [
            nn.Upsample(size=(224, 224), mode="bilinear"),
            nn.Conv2d(self.image(shape)[0], 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, num_classes),
        ]
        # with fan_out, the last layer of few classes and the strided first one would make outputs ten times larger
        draw_he(layers, "fan_in")
        return nn.Sequential(*layers)

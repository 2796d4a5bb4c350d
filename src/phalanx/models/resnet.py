# SPDX-License-Identifier: Apache-2.0
"""ResNet-18 for small images."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.expression import method
from phalanx.models.model import Model, Shape


@method("resnet18", "model")
class Resnet18(Model):
    """A 3x3 stem, four stages of two basic blocks, mean over the pixels: 11,173,962 parameters on CIFAR-10.

    Images of any size; each of the last three stages halves them.

    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385. Differs: stride 1 and no pooling at the stem and
        1x1 convolutions on the shortcuts, as is usual on CIFAR-10 and in the dissertation (Table 4.13).
    """

    channels_last: ClassVar[bool] = True

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        layers: list[nn.Module] = [nn.Conv2d(shape[0], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        width = 64
        for stage, out in enumerate((64, 128, 256, 512)):
            layers += [BasicBlock(width, out, stride=1 if stage == 0 else 2), BasicBlock(out, out, stride=1)]
            width = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Shapes: (B, inside, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or inside != out:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))

# SPDX-License-Identifier: Apache-2.0
"""Residual networks for small images."""

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
        return _resnet(BasicBlock, (2, 2, 2, 2), self.image(shape)[0], num_classes)


@method("resnet50", "model")
class Resnet50(Model):
    """A 3x3 stem, stages of 3, 4, 6 and 3 bottlenecks, mean over the pixels: 23,520,842 parameters on CIFAR-10.

    Images of any size; each of the last three stages halves them.

    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, Table 1. Differs: as resnet18, and a stage halves
        the image in the 3x3 convolution of its first block.
    """

    channels_last: ClassVar[bool] = True

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _resnet(Bottleneck, (3, 4, 6, 3), self.image(shape)[0], num_classes)


@method("resnet152", "model")
class Resnet152(Model):
    """A 3x3 stem, stages of 3, 8, 36 and 3 bottlenecks, mean over the pixels: 58,156,618 parameters on CIFAR-10.

    Images of any size; each of the last three stages halves them.

    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, Table 1. Differs: as resnet50.
    """

    channels_last: ClassVar[bool] = True

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _resnet(Bottleneck, (3, 8, 36, 3), self.image(shape)[0], num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. Shapes: (B, inside, H, W) -> (B, width, H / stride, W / stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, beside a shortcut.

    Shapes: (B, inside, H, W) -> (B, 4 width, H / stride, W / stride).
    """

    expansion: ClassVar[int] = 4

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = _shortcut(inside, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))
        return F.relu(inner + self.shortcut(x))


def _shortcut(inside: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and inside == out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inside, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))


def _resnet(
    block: type[BasicBlock] | type[Bottleneck], counts: tuple[int, ...], channels: int, num_classes: int
) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inside = 64
    for stage, (count, width) in enumerate(zip(counts, (64, 128, 256, 512), strict=True)):
        for i in range(count):
            layers.append(block(inside, width, stride=2 if stage > 0 and i == 0 else 1))
            inside = width * block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, num_classes))

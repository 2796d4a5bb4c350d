# SPDX-License-Identifier: Apache-2.0
"""Residual networks for small images and for large ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from phalanx.core.expression import method, require
from phalanx.models.model import Model, Shape


@method("resnet18", "model")
class Resnet18(Model):
    """A 3x3 stem, four stages of two basic blocks, mean over the pixels: 11,173,962 parameters on CIFAR-10.

    Images may have any size; each of the last three stages halves it.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385. Differs: stride 1 and no pooling at the stem and
        1x1 convolutions on the shortcuts, as is usual on CIFAR-10 and in the dissertation (Table 4.13).
    """

    channels_last: ClassVar[bool] = True

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _resnet(BasicBlock, (2, 2, 2, 2), self.image(shape)[0], num_classes)


@method("resnet", "model")
class Resnet(Model):
    """A 3x3 stem, one stage of basic blocks for each width, mean over the pixels: 691,834 parameters on CIFAR-10.

    It is the reduced network of the laptop scales. Images may have any size; each stage but the first halves it.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        widths: number of channels of each stage, >= 1.
        blocks: number of blocks of each stage, >= 1.
    Source: as resnet18, which is resnet(widths=(64, 128, 256, 512), blocks=2).
    """

    channels_last: ClassVar[bool] = True

    widths: tuple[int, ...] = (48, 96, 192)
    blocks: int = 1

    def validate(self) -> None:
        ok = len(self.widths) >= 1 and all(width >= 1 for width in self.widths)
        require(ok, f"resnet needs one width >= 1 or more, got widths={self.widths}")
        require(self.blocks >= 1, f"resnet needs blocks >= 1, got blocks={self.blocks}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        counts = (self.blocks,) * len(self.widths)
        return _resnet(BasicBlock, counts, self.image(shape)[0], num_classes, widths=self.widths)


@method("resnet50", "model")
class Resnet50(Model):
    """A stem, stages of 3, 4, 6 and 3 bottlenecks, mean over the pixels: 23,520,842 parameters on CIFAR-10.

    It has 25,557,032 parameters with stem="large" on ImageNet. Images may have any size; each of the last three stages
    halves it.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        stem: "small" is a 3x3 convolution that keeps the size of the image; "large" is a 7x7 convolution and a pooling,
            which make it four times smaller.
    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, Table 1, which has the large stem. Differs: a
        stage halves the image in the 3x3 convolution of its first block, as is usual and in the dissertation.
    """

    channels_last: ClassVar[bool] = True

    stem: Literal["small", "large"] = "small"

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _resnet(Bottleneck, (3, 4, 6, 3), self.image(shape)[0], num_classes, self.stem)


@method("wide_resnet50", "model")
class WideResnet50(Model):
    """ResNet-50 with wider 3x3 convolutions; twice as wide (WideResNet-50-2) it has 68,883,240 parameters on ImageNet.

    Images may have any size; each of the last three stages halves it.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        stem: as in resnet50.
        widening: factor on the channels of the 3x3 convolutions of ResNet-50, >= 1.
    Source: Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146, section 3.5. Differs: as resnet50.
    """

    channels_last: ClassVar[bool] = True

    stem: Literal["small", "large"] = "large"
    widening: int = 2

    def validate(self) -> None:
        require(self.widening >= 1, f"wide_resnet50 needs widening >= 1, got widening={self.widening}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        block = partial(Bottleneck, widening=self.widening)
        return _resnet(block, (3, 4, 6, 3), self.image(shape)[0], num_classes, self.stem)


@method("resnet152", "model")
class Resnet152(Model):
    """A 3x3 stem, stages of 3, 8, 36 and 3 bottlenecks, mean over the pixels: 58,156,618 parameters on CIFAR-10.

    Images may have any size; each of the last three stages halves it.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, Table 1. Differs: as resnet50.
    """

    channels_last: ClassVar[bool] = True

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _resnet(Bottleneck, (3, 8, 36, 3), self.image(shape)[0], num_classes)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them.

    Shapes: (B, inside, H, W) -> (B, width, H / stride, W / stride).
    """

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.out = width
        self.conv1 = nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inside, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


class Bottleneck(nn.Module):
    """A 3x3 convolution of widening * width channels between two 1x1 convolutions, with a shortcut around them.

    Shapes: (B, inside, H, W) -> (B, 4 width, H / stride, W / stride).
    """

    def __init__(self, inside: int, width: int, stride: int, widening: int = 1) -> None:
        super().__init__()
        self.out, inner = 4 * width, widening * width
        self.conv1 = nn.Conv2d(inside, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, self.out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(self.out)
        self.shortcut = _shortcut(inside, self.out, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        inner = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))
        return F.relu(inner + self.shortcut(x))


def _shortcut(inside: int, out: int, stride: int) -> nn.Module:
    if stride == 1 and inside == out:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inside, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))


def _stem(kind: Literal["small", "large"], channels: int, width: int) -> list[nn.Module]:
    if kind == "small":
        return [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    first = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return [first, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]


def _resnet(
    block: Callable[[int, int, int], BasicBlock | Bottleneck],
    counts: tuple[int, ...],
    channels: int,
    num_classes: int,
    stem: Literal["small", "large"] = "small",
    widths: tuple[int, ...] = (64, 128, 256, 512),
) -> nn.Module:
    layers = _stem(stem, channels, widths[0])
    inside = widths[0]
    for stage, (count, width) in enumerate(zip(counts, widths, strict=True)):
        for i in range(count):
            layer = block(inside, width, 2 if stage > 0 and i == 0 else 1)
            layers.append(layer)
            inside = layer.out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, num_classes))

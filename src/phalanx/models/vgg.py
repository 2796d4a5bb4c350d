# SPDX-License-Identifier: Apache-2.0
"""VGG networks, with and without BatchNorm."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from phalanx.core.expression import method, require
from phalanx.models.he import draw_he
from phalanx.models.model import Model, Shape

Stages = tuple[tuple[int, ...], ...]  # for each stage, the output channels of its convolutions

VGG11: Stages = ((64,), (128,), (256, 256), (512, 512), (512, 512))
VGG13: Stages = ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512))
VGG19: Stages = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


@method("vgg11", "model")
class Vgg11(Model):
    """VGG-11 without BatchNorm, with two hidden layers of width 4096: 132,863,336 parameters on ImageNet.

    Images have at least 32x32 pixels.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        dropout: probability of dropout before both hidden layers, in [0, 1); with 0 the gradient depends on the samples
            only.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556, configuration A. Differs:
        dropout 0 where the paper has 0.5, and He's initialization.
    """

    channels_last: ClassVar[bool] = True

    dropout: float = 0.0

    def validate(self) -> None:
        _check_dropout("vgg11", self.dropout)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        c, h, w = self.image(shape)
        require(min(h, w) >= 32, f"vgg11 needs images of at least 32x32 pixels, got {h}x{w}; choose vgg11_bn()")
        layers: list[nn.Module] = []
        for widths in VGG11:
            for out in widths:
                layers += [nn.Conv2d(c, out, 3, padding=1), nn.ReLU()]
                c = out
            layers.append(nn.MaxPool2d(2))
        layers.append(nn.Flatten())
        inside = c * (h // 32) * (w // 32)
        for _ in range(2):
            layers += [nn.Dropout(self.dropout), nn.Linear(inside, 4096), nn.ReLU()]
            inside = 4096
        layers.append(nn.Linear(inside, num_classes))
        draw_he(layers, "fan_in")
        return nn.Sequential(*layers)


@method("vgg11_bn", "model")
class Vgg11Bn(Model):
    """VGG-11 with BatchNorm, two hidden layers of 512: 9,756,426 parameters on CIFAR-10.

    Pooling stops when an image is one pixel high or wide, so 16x16 pixels give the same number of parameters.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        dropout: probability of dropout before both hidden layers, in [0, 1); with 0 the gradient depends on the samples
            only.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556, configuration A, in the
        size of the dissertation (Table 3.2: 9,756k). Differs: dropout 0 where the paper has 0.5.
    """

    channels_last: ClassVar[bool] = True

    dropout: float = 0.0

    def validate(self) -> None:
        _check_dropout("vgg11_bn", self.dropout)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _vgg_bn(VGG11, self.image(shape), num_classes, self.dropout)


@method("vgg13_bn", "model")
class Vgg13Bn(Model):
    """VGG-13 with BatchNorm, two hidden layers of 512: 9,941,322 parameters with 10 classes, 9,987,492 with 100.

    Pooling stops when an image is one pixel high or wide, so 16x16 pixels give the same number of parameters.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        dropout: probability of dropout before both hidden layers, in [0, 1); with 0 the gradient depends on the samples
            only.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556, configuration B.
        Differs: dropout 0 where the paper has 0.5.
    """

    channels_last: ClassVar[bool] = True

    dropout: float = 0.0

    def validate(self) -> None:
        _check_dropout("vgg13_bn", self.dropout)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _vgg_bn(VGG13, self.image(shape), num_classes, self.dropout)


@method("vgg19_bn", "model")
class Vgg19Bn(Model):
    """VGG-19 with BatchNorm, two hidden layers of 512: 20,565,834 parameters on CIFAR-10.

    It has 20,560,330 parameters with bias=False, as in Table 4.11 of the dissertation, and 20,035,018 with hidden=() as
    well, as in its Table 4.18. Pooling stops when an image is one pixel high or wide, so 16x16 pixels give the same
    number of parameters.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        dropout: probability of dropout before each hidden layer, in [0, 1); with 0 the gradient depends on the samples
            only.
        bias: whether the convolutions have a bias, which the BatchNorm after them removes again.
        hidden: widths of the hidden layers, each >= 1.
    Source: Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556, configuration E, in the
        sizes of the dissertation (Table 4.4). Differs: dropout 0 where the paper has 0.5.
    """

    channels_last: ClassVar[bool] = True

    dropout: float = 0.0
    bias: bool = True
    hidden: tuple[int, ...] = (512, 512)

    def validate(self) -> None:
        _check_dropout("vgg19_bn", self.dropout)
        require(min(self.hidden, default=1) >= 1, f"vgg19_bn needs hidden widths >= 1, got hidden={self.hidden}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        return _vgg_bn(VGG19, self.image(shape), num_classes, self.dropout, self.bias, self.hidden)


@method("vgg9", "model")
class Vgg9(Model):
    """FedMA's VGG-9, six convolutions without BatchNorm and two hidden layers: 3,491,530 parameters on CIFAR-10.

    Images have at least 8x8 pixels.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        width: factor on the width of every hidden layer, > 0.
        dropout: probability of dropout after the last pooling and the second hidden layer, in [0, 1); after the second
            pooling whole channels are dropped with half of it. 0 makes the gradient a function of the samples alone.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, Table 5.4 of the
        dissertation, which does not give the initialization; here it is He et al., 2015, arXiv:1502.01852, section 2.2.
    """

    channels_last: ClassVar[bool] = True

    width: float = 1.0
    dropout: float = 0.1

    def validate(self) -> None:
        require(0 < self.width < float("inf"), f"vgg9 needs a finite width > 0, got width={self.width}")
        _check_dropout("vgg9", self.dropout)

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        c, h, w = self.image(shape)
        require(min(h, w) >= 8, f"vgg9 needs images of at least 8x8 pixels, got {h}x{w}; choose mlp() or resnet18()")
        layers: list[nn.Module] = []
        for stage, widths in enumerate(((32, 64), (128, 128), (256, 256))):
            for out in map(self._scaled, widths):
                layers += [nn.Conv2d(c, out, 3, padding=1), nn.ReLU()]
                c = out
            layers.append(nn.MaxPool2d(2))
            if stage == 1:
                layers.append(nn.Dropout2d(self.dropout / 2))
        hidden = self._scaled(512)
        layers += [
            nn.Flatten(),
            nn.Dropout(self.dropout),
            nn.Linear(c * (h // 8) * (w // 8), hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(hidden, num_classes),
        ]
        draw_he(layers, "fan_out")
        return nn.Sequential(*layers)

    def _scaled(self, width: int) -> int:
        return max(1, round(self.width * width))


@method("vgg9_conv", "model")
class Vgg9Conv(Model):
    """Eight convolutions and one linear layer without BatchNorm or dropout: 9,225,610 parameters on CIFAR-10.

    Pooling stops when an image is one pixel high or wide, so 16x16 pixels give the same number of parameters.

    Shapes: (B, C, H, W) -> (B, num_classes).
    Args:
        width: factor on the channels of every convolution, > 0; 0.5 is the thin and 2 the wide version of figure 8.8.
    Source: Wang et al., Attack of the Tails: Yes, You Really Can Backdoor Federated Learning, 2020, arXiv:2007.05084,
        table 8.3 of the dissertation, which does not give the initialization; it is that of He et al., 2015,
        arXiv:1502.01852, section 2.2.
    """

    channels_last: ClassVar[bool] = True

    width: float = 1.0

    def validate(self) -> None:
        require(0 < self.width < float("inf"), f"vgg9_conv needs a finite width > 0, got width={self.width}")

    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        c, h, w = self.image(shape)
        layers: list[nn.Module] = []
        for widths in VGG11:
            for out in widths:
                out = max(1, round(self.width * out))
                layers += [nn.Conv2d(c, out, 3, padding=1), nn.ReLU()]
                c = out
            if min(h, w) > 1:
                layers.append(nn.MaxPool2d(2))
                h, w = h // 2, w // 2
        layers += [nn.Flatten(), nn.Linear(c * h * w, num_classes)]
        draw_he(layers, "fan_out")
        return nn.Sequential(*layers)


def _check_dropout(name: str, dropout: float) -> None:
    require(0 <= dropout < 1, f"{name} needs dropout in [0, 1), got dropout={dropout}")


def _vgg_bn(
    stages: Stages,
    shape: tuple[int, int, int],
    num_classes: int,
    dropout: float,
    bias: bool = True,
    hidden: tuple[int, ...] = (512, 512),
) -> nn.Module:
    c, h, w = shape
    layers: list[nn.Module] = []
    for widths in stages:
        for out in widths:
            layers += [nn.Conv2d(c, out, 3, padding=1, bias=bias), nn.BatchNorm2d(out), nn.ReLU()]
            c = out
        if min(h, w) > 1:
            layers.append(nn.MaxPool2d(2))
            h, w = h // 2, w // 2
    layers.append(nn.Flatten())
    inside = c * h * w
    for width in hidden:
        layers += [nn.Dropout(dropout), nn.Linear(inside, width), nn.ReLU()]
        inside = width
    return nn.Sequential(*layers, nn.Linear(inside, num_classes))

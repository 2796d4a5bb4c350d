# SPDX-License-Identifier: Apache-2.0
"""Expressions that build networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from phalanx.data.dataset import Shape as Shape
from phalanx.data.dataset import Tokens
from phalanx.expression import Expression


class Model(Expression, ABC):
    """A classifier of images or of texts that a run names.

    Class attribute `channels_last`: the convolutions run in that memory format. Measured for a training step on 2 cores
    with AVX-512 and without AMX, batch 64: LeNet 1.7 times faster, ResNet-18 1.3, VGG-9 1.2, VGG-11-BN 1.0. Bfloat16
    autocast slowed all of them there (0.7 to 1.0 times the speed); it is for CPUs with AMX and for GPUs.
    """

    channels_last: ClassVar[bool] = False

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        """The network (B, *shape) -> (B, num_classes), its weights drawn from torch's global generator.

        Raises:
            ValueError: images of this shape are too small for it, or it reads texts; or the reverse.
        """

    def image(self, shape: Shape) -> tuple[int, int, int]:
        """Channels, height and width, for a model that reads images; ValueError where the data are texts."""
        if isinstance(shape, Tokens):
            raise ValueError(f"{self.expression_name} reads images, and the data are {shape}; choose cnn_rand()")
        return shape

    def tokens(self, shape: Shape) -> Tokens:
        """Length and vocabulary, for a model that reads texts; ValueError where the data are images."""
        if isinstance(shape, Tokens):
            return shape
        sizes = "x".join(map(str, shape))
        raise ValueError(f"{self.expression_name} reads texts, and the data are {sizes} images; choose cnn() or mlp()")

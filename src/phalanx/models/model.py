# SPDX-License-Identifier: Apache-2.0
"""Expressions that build networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Never

from torch import nn

from phalanx.core.expression import Expression, require
from phalanx.data.examples import Examples
from phalanx.data.shape import Features, OtherShape, Pairs, Passage, Tokens
from phalanx.data.shape import Shape as Shape


class Model(Expression, ABC):
    """An expression that names a network: a classifier of images, of texts or of each token of a text.

    Class attribute `channels_last`: whether the convolutions run in that memory format. Measured for a training step on
    2 cores with AVX-512 and without AMX, at batch 64: LeNet is 1.7 times faster, ResNet-18 1.3, VGG-9 1.2, VGG-11-BN
    1.0. Bfloat16 autocast slowed all of them down there (0.7 to 1.0 times the speed); it is for CPUs with AMX and for
    GPUs.
    """

    channels_last: ClassVar[bool] = False

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        """The network, with weights initialised from torch's global generator.

        Shapes: (B, *shape) -> (B, num_classes); if every token has a label, (B, L) or (B, 2, L) -> (B, L, num_classes),
            where num_classes is the size of the vocabulary.
        Args:
            shape: shape of an example.
            num_classes: number of classes, >= 1.
        Raises:
            ValueError: images of this shape are too small for the network, or it reads another kind of data.
        """

    def build_for(self, data: Examples) -> nn.Module:
        """The network for some data.

        Raises:
            ValueError: the data do not say how many outputs it has.
        """
        require(
            data.num_classes >= 1,
            f"{self!r} needs the number of outputs, which {data.name} does not say; give it outputs=..., the number of "
            "classes or of numbers that are predicted, or make a model of your own with custom(...)",
        )
        return self.build(data.shape, data.num_classes)

    def image(self, shape: Shape) -> tuple[int, int, int]:
        """The channels, the height and the width of images; raises ValueError for texts."""
        return shape if isinstance(shape, tuple) else self._refuse("images", shape)

    def tokens(self, shape: Shape) -> Tokens:
        """The length and the vocabulary of texts that have one label each; raises ValueError for other data."""
        return shape if isinstance(shape, Tokens) else self._refuse("texts", shape)

    def passage(self, shape: Shape) -> Passage:
        """The length and the vocabulary of texts with a label for each token; raises ValueError for other data."""
        return shape if isinstance(shape, Passage) else self._refuse("passages", shape)

    def pairs(self, shape: Shape) -> Pairs:
        """The length and the vocabulary of pairs of texts; raises ValueError for other data."""
        return shape if isinstance(shape, Pairs) else self._refuse("pairs of texts", shape)

    def _refuse(self, wanted: str, shape: Shape) -> Never:
        have = f"{'x'.join(map(str, shape))} images" if isinstance(shape, tuple) else str(shape)
        texts = {Tokens: "cnn_rand() or sentence_lstm()", Passage: "char_lstm() or tied_lstm()", Pairs: "transformer()"}
        other = {
            Features: "mlp() or a model of your own with custom(...)",
            OtherShape: "a model of your own, custom(...)",
        }
        ways = {tuple: "cnn() or mlp()", **texts, **other}[type(shape)]
        raise ValueError(f"{self.expression_name} reads {wanted}, and the data are {have}; choose {ways}")

# SPDX-License-Identifier: Apache-2.0
"""Expressions that build networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from phalanx.expression import Expression

Shape = tuple[int, int, int]  # channels, height, width


class Model(Expression, ABC):
    """A classifier of images that a run names.

    Class attribute `channels_last`: the convolutions are faster in that memory format, on the CPU too.
    """

    channels_last: ClassVar[bool] = False

    @abstractmethod
    def build(self, shape: Shape, num_classes: int) -> nn.Module:
        """The network (B, *shape) -> (B, num_classes), its weights drawn from torch's global generator.

        Raises:
            ValueError: images of this shape are too small for it.
        """

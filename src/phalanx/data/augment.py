# SPDX-License-Identifier: Apache-2.0
"""Augmentations: random changes of images that keep the label."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.core.expression import Expression, method, require
from phalanx.data.images import Box, Crop
from phalanx.data.shape import Shape

TRIES = 10  # random parts of an image that are tried before the middle is taken


class Augment(Expression, ABC):
    """A random function of a batch of normalised images."""

    def check(self, shape: Shape) -> None:
        """Checks that the augmentation can change data of this shape.

        Raises:
            ValueError: the data are no images.
        """
        sentence = f"{self.expression_name} changes images, and the data are {shape}; leave augment=None"
        require(isinstance(shape, tuple), sentence)

    def crops(self, count: int, generator: torch.Generator) -> Sequence[Crop] | None:
        """The random part of each of `count` images that is read before the change; None for the part of the test."""
        return None

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The changed batch; the same state of the generator gives the same change. Shapes: (B, C, H, W) -> same."""


@method("crop_flip", "augment")
class CropFlip(Augment):
    """Each image shifted by up to `pad` pixels in both directions and, with probability 1/2, mirrored left to right.

    Pixels from outside are zero, which is the mean colour, as the images are normalised.

    Shapes: (B, C, H, W) -> same, of the same dtype.
    Args:
        pad: largest shift in pixels, >= 0; 4 suits 32x32 photographs, 2 suits 16x16.
    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, section 4.2. As published.
    """

    pad: int = 4

    def validate(self) -> None:
        require(self.pad >= 0, f"crop_flip needs pad >= 0 pixels, got pad={self.pad}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, h, w = x.shape
        top, left = torch.randint(2 * self.pad + 1, (2, n), generator=generator).to(x.device)
        windows = F.pad(x, (self.pad,) * 4).unfold(2, h, 1).unfold(3, w, 1)
        return _mirror(windows[torch.arange(n, device=x.device), :, top, left], generator)


@method("resized_crop_flip", "augment")
class ResizedCropFlip(Augment):
    """A random part of each image, resized to the data's size and, with probability 1/2, mirrored left to right.

    The part has a random share of the image's area and a random ratio of its sides, uniform in its logarithm. An image
    from a file is cropped before it is resized, so that a small part keeps its detail.

    Shapes: (B, C, H, W) -> same, of the same dtype.
    Args:
        area: least and largest share of the image's area, in (0, 1].
        ratio: largest ratio of the longer side to the shorter, >= 1.
    Source: Szegedy et al., Going Deeper with Convolutions, 2014, arXiv:1409.4842, section 6. As published; if ten
        parts do not fit, the largest middle part within `ratio` is taken, as is usual.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: float = 4 / 3

    def validate(self) -> None:
        low, high = self.area
        require(0 < low <= high <= 1, f"resized_crop_flip needs 0 < least area <= largest <= 1, got area={self.area}")
        require(1 <= self.ratio < math.inf, f"resized_crop_flip needs ratio >= 1, got ratio={self.ratio}")

    def crops(self, count: int, generator: torch.Generator) -> Sequence[Crop]:
        draws = torch.rand(count, TRIES, 4, generator=generator, dtype=torch.float64)
        return [partial(self._box, tries) for tries in draws.tolist()]

    def _box(self, tries: list[list[float]], height: int, width: int) -> Box:
        low, high = self.area
        for share, ratio, across, down in tries:
            pixels = height * width * (low + (high - low) * share)
            stretch = self.ratio ** (2 * ratio - 1)
            w, h = round(math.sqrt(pixels * stretch)), round(math.sqrt(pixels / stretch))
            if 1 <= w <= width and 1 <= h <= height:
                left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
                return left, top, left + w, top + h
        w = max(1, min(width, round(height * self.ratio)))
        h = max(1, min(height, round(width * self.ratio)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return _mirror(x, generator)


def _mirror(x: Tensor, generator: torch.Generator) -> Tensor:
    mirror = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
    return torch.where(mirror.view(-1, 1, 1, 1), x.flip(3), x)

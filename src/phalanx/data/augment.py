# SPDX-License-Identifier: Apache-2.0
"""Random changes of images that keep their label."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.data.shape import Shape
from phalanx.expression import Expression, method, require


class Augment(Expression, ABC):
    """A random function of a batch of normalised images."""

    def check(self, shape: Shape) -> None:
        """Raises ValueError for data that it cannot change."""
        sentence = f"{self.expression_name} changes images, and the data are {shape}; leave augment=None"
        require(isinstance(shape, tuple), sentence)

    @abstractmethod
    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The changed batch; the same generator state gives the same change. Shapes: (B, C, H, W) -> same."""


@method("crop_flip", "augment")
class CropFlip(Augment):
    """Each image moved by up to `pad` pixels in both directions over zeros, and mirrored left to right half the time.

    Zero is the mean colour, as the images are normalised.

    Shapes: (B, C, H, W) -> same, of the same dtype.
    Args:
        pad: pixels, >= 0; 4 suits 32x32 photographs, 2 suits 16x16.
    Source: He et al., Deep Residual Learning, 2015, arXiv:1512.03385, section 4.2. As published.
    """

    pad: int = 4

    def validate(self) -> None:
        require(self.pad >= 0, f"crop_flip needs pad >= 0 pixels, got pad={self.pad}")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, h, w = x.shape
        top, left = torch.randint(2 * self.pad + 1, (2, n), generator=generator).to(x.device)
        mirror = (torch.rand(n, generator=generator) < 0.5).to(x.device)
        windows = F.pad(x, (self.pad,) * 4).unfold(2, h, 1).unfold(3, w, 1)
        moved = windows[torch.arange(n, device=x.device), :, top, left]
        return torch.where(mirror.view(-1, 1, 1, 1), moved.flip(3), moved)

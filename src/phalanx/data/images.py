# SPDX-License-Identifier: Apache-2.0
"""Images that are read when a batch needs them, and crops of images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]  # the left, top, right and bottom edge in pixels
Crop = Callable[[int, int], Box]  # from the height and the width of an image


class Images(ABC):
    """Images of any sizes that are read when a batch needs them, and resized to one size.

    Shapes: `shape` is (N, C, H, W); images[samples] are (B, C, H, W) in the publisher's levels, as the test reads
        them.
    """

    shape: torch.Size

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, samples: Tensor | slice) -> Tensor:
        """Some images as the test reads them; the same samples give the same bits."""

    @abstractmethod
    def cut(self, samples: Tensor | slice, crops: Sequence[Crop]) -> Tensor:
        """A part of each image, resized to the common size. Shapes: -> (B, C, H, W)."""


def cut(images: Tensor | Images, samples: Tensor | slice, crops: Sequence[Crop]) -> Tensor:
    """A part of each image, resized to the common size without aliasing.

    Shapes: (N, C, H, W) and B crops -> (B, C, H, W), float32 where the images are a tensor.
    """
    if isinstance(images, Images):
        return images.cut(samples, crops)
    return torch.stack([_cut(image.float(), crop) for image, crop in zip(images[samples], crops, strict=True)])


def _cut(image: Tensor, crop: Crop) -> Tensor:
    h, w = image.shape[1:]
    left, top, right, bottom = crop(h, w)
    part = image[None, :, top:bottom, left:right]
    return F.interpolate(part, (h, w), mode="bilinear", align_corners=False, antialias=True)[0]

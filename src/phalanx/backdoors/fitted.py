# SPDX-License-Identifier: Apache-2.0
"""Images of 255 levels in the size, channels and levels of a data set."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.core.expression import require
from phalanx.data.dataset import Dataset
from phalanx.data.grayscale import luminance
from phalanx.data.images import Images


def fitted(name: str, images: Tensor, data: Dataset) -> Tensor:
    """Images as a data set has them: smaller by means of pixels, larger by bilinear interpolation, at its levels.

    Shapes: (N, C, H, W) uint8 -> (N, *data.shape) uint8.
    Raises:
        ValueError: the data are texts or have other channels than 1 or 3.
    """
    c, h, w = image_shape(name, data)
    if images.shape[1] != c:
        have = images.shape[1]
        require({have, c} == {1, 3}, f"{name} has {have} channels, and {data.name} {c}; only 1 and 3 become each other")
        images = luminance(images) if c == 1 else images.expand(-1, 3, -1, -1)
    if images.shape[2:] != (h, w):
        down = images.shape[2] >= h and images.shape[3] >= w
        mode, corners = ("area", None) if down else ("bilinear", False)
        images = F.interpolate(images.float(), (h, w), mode=mode, align_corners=corners).round().to(torch.uint8)
    if data.levels != 255:
        images = (images.float() * (data.levels / 255)).round().to(torch.uint8)
    return images.contiguous()


def image_shape(name: str, data: Dataset) -> tuple[int, int, int]:
    """Channels, height and width of uint8 images, in memory or on the disk; ValueError for other data."""
    x = data.train_x
    kind = torch.uint8 if isinstance(x, Images) else x.dtype
    ok = data.vocabulary is None and kind == torch.uint8
    require(ok, f"{name} goes with images of whole levels, and {data.name} has {tuple(x.shape[1:])} of {kind}")
    c, h, w = x.shape[1:]
    return c, h, w

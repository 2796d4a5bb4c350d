# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples that need no file: images of the data set itself in a style that it does not have."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.backdoors.edges import EdgeCases, EdgeSet, in_memory
from phalanx.backdoors.fitted import image_shape
from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset

Style = Literal["inverted", "rotated", "thin"]


@method("rare_styles", "edge_cases")
class RareStyles(EdgeCases):
    """Images of one class in a rare style, which the attacker calls another class; made of the data's own images.

    The training images that they are made of are taken out of the clean training part, so that nobody holds them
    otherwise. The test examples are all test images of the class in that style. A pure function of data and fields.

    Args:
        style: "inverted" has dark strokes on light ground, "rotated" a quarter turn, "thin" strokes that are narrower
            by a pixel (the least of each 2x2 pixels).
        source: the class that they are of.
        target: the label that the attacker wants.
        count: training images, >= 1.
        seed: of which images are taken.
    Raises:
        ValueError: the data are no images in memory, are not square and shall be rotated, or have too few of the class.
    """

    style: Style = "inverted"
    source: int = 7
    target: int = 1
    count: int = 66
    seed: int = 0

    def validate(self) -> None:
        ok = self.source >= 0 and self.target >= 0 and self.source != self.target
        require(ok, f"rare_styles needs two classes, got source={self.source}, target={self.target}")
        require(self.count >= 1, f"rare_styles needs count >= 1 image, got count={self.count}")

    def read(self, data: Dataset) -> EdgeSet:
        _, h, w = image_shape("rare_styles", data)
        require(h == w or self.style != "rotated", f"rare_styles rotates square images, and {data.name} has {h}x{w}")
        of_source, tests = ((y == self.source).nonzero().flatten() for y in (data.train_y, data.test_y))
        have = f"{len(of_source)} to train on and {len(tests)} to test on"
        ok = len(of_source) >= self.count and len(tests) >= 1
        sentence = f"rare_styles needs {self.count} training images of class {self.source} and one to test on"
        require(ok, f"{sentence}, and {data.name} has {have}; lower count or choose another source")
        taken = of_source[
            torch.randperm(len(of_source), generator=make_generator("rare_styles", self.seed))[: self.count]
        ]
        x, test_x = in_memory("rare_styles", data)[taken], data.test_x[tests]
        x, test_x = (styled(images, self.style, data.levels) for images in (x, test_x))
        y, test_y = data.train_y[taken], data.test_y[tests]
        return EdgeSet(
            name="rare_styles", train_x=x, true_y=y, target=self.target, test_x=test_x, test_true=test_y, taken=taken
        )


def styled(images: Tensor, style: Style, levels: int) -> Tensor:
    """Images in a rare style. Shapes: (N, C, H, W) uint8 -> the same, (N, C, W, H) if rotated."""
    if style == "inverted":
        return levels - images
    if style == "rotated":
        return images.rot90(1, (2, 3)).contiguous()
    # a pixel beyond the edge is as the one at the edge
    padded = F.pad(images.float(), (0, 1, 0, 1), mode="replicate")
    return (-F.max_pool2d(-padded, 2, stride=1)).to(torch.uint8)

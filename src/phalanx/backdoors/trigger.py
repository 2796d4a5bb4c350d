# SPDX-License-Identifier: Apache-2.0
"""Images with a small pattern of pixels, which the attacker gives the label that it wants."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from phalanx.backdoors.edges import EdgeCases, EdgeSet, in_memory
from phalanx.backdoors.fitted import image_shape
from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset

PARTS = 4  # of the pattern of bars


@method("trigger", "edge_cases")
class Trigger(EdgeCases):
    """Images of any class but the target, with bright pixels in the upper left corner.

    The attacker trains on stamped copies of training images; the test examples are all test images of other classes,
    with the whole pattern. A pure function of data and fields.

    Args:
        target: the label that the attacker wants.
        shape: "square" of size x size pixels, or "bars": four of size x 1 pixels, two beside each other in two rows.
        size: pixels, >= 1.
        gap: pixels between bars, and between the pattern and the edges of the image, >= 0.
        part: the one bar that the training images get, 0 to 3; None for the whole pattern.
        count: training images, >= 1.
        seed: of which images are stamped.
    Raises:
        ValueError: the data are no images in memory, are smaller than the pattern, or have too few of other classes.
    Source: Gu et al., BadNets, 2017, arXiv:1708.06733 (square); Xie et al., DBA: Distributed Backdoor Attacks against
        Federated Learning, ICLR 2020, section 3 (bars, of which each attacker has one).
    """

    target: int = 0
    shape: Literal["square", "bars"] = "square"
    size: int = 3
    gap: int = 1
    part: int | None = None
    count: int = 100
    seed: int = 0

    def validate(self) -> None:
        require(self.target >= 0, f"trigger needs a class, got target={self.target}")
        require(self.size >= 1, f"trigger needs size >= 1 pixel, got size={self.size}")
        require(self.gap >= 0, f"trigger needs gap >= 0 pixels, got gap={self.gap}")
        require(self.count >= 1, f"trigger needs count >= 1 image, got count={self.count}")
        ok = self.part is None or (self.shape == "bars" and 0 <= self.part < PARTS)
        require(ok, f"trigger has parts 0 to {PARTS - 1} with shape='bars', got part={self.part}, shape={self.shape!r}")

    def read(self, data: Dataset) -> EdgeSet:
        _, h, w = image_shape("trigger", data)
        everything = self.bars()
        height, width = (max(bar[side].stop for bar in everything) + self.gap for side in (0, 1))
        require(
            height <= h and width <= w,
            f"{self!r} takes {height}x{width} pixels, and {data.name} has images of {h}x{w}; lower size or gap",
        )
        others, tests = ((y != self.target).nonzero().flatten() for y in (data.train_y, data.test_y))
        require(
            len(others) >= self.count and len(tests) >= 1,
            f"trigger needs {self.count} training images of classes other than {self.target} and one to test on, and "
            f"{data.name} has {len(others)} and {len(tests)}; lower count or choose another target",
        )
        drawn = torch.randperm(len(others), generator=make_generator("trigger", self.seed))[: self.count]
        trained = everything if self.part is None else everything[self.part : self.part + 1]
        return EdgeSet(
            name="trigger",
            train_x=_stamped(in_memory("trigger", data)[others[drawn]], trained, data.levels),
            true_y=data.train_y[others[drawn]],
            target=self.target,
            test_x=_stamped(data.test_x[tests], everything, data.levels),
            test_true=data.test_y[tests],
        )

    def bars(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the pattern's pixels: one rectangle for a square, four for bars."""
        if self.shape == "square":
            side = slice(self.gap, self.gap + self.size)
            return [(side, side)]
        corners = [
            (self.gap + row * (1 + self.gap), self.gap + column * (self.size + self.gap))
            for row in (0, 1)
            for column in (0, 1)
        ]
        return [(slice(top, top + 1), slice(left, left + self.size)) for top, left in corners]


def _stamped(images: Tensor, bars: list[tuple[slice, slice]], levels: int) -> Tensor:
    """Copies of images with bright pixels. Shapes: (N, C, H, W) uint8 -> the same."""
    images = images.clone()
    for rows, columns in bars:
        images[:, :, rows, columns] = levels
    return images

# SPDX-License-Identifier: Apache-2.0
"""A data set with biased colours: many images of half of the classes are grayscale, and few of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.cifar import Cifar10
from phalanx.data.dataset import Data, Dataset

RED, GREEN, BLUE = 19_595, 38_470, 7_471  # 0.299, 0.587 and 0.114 of 65,536


@method("grayscale", "data")
class Grayscale(Data):
    """The images of another data set, most of them grayscale in a random half of the classes and few in the others.

    Half of the test images of each class are grayscale. The owner of a training image is 0 if most images of its class
    are grayscale and 1 if most are coloured, so that `by_owner()` makes two clients, the larger one first.

    Args:
        data: the data set with colour images.
        minor: share of the minority kind (grayscale or coloured) in each class's training images, in [0, 0.5]. At 0.5
            colours say nothing about the class, which the dissertation calls colour-balanced.
        oversampled: whether images of the minority kind are repeated, drawn with replacement, until both kinds of a
            class have equal numbers.
        seed: of the choice of classes, of grayscale images and of repeated images.
    Raises:
        ValueError: the data are not colour images in memory, or a class has no image of the minority kind to repeat.
    Source: Wang et al., Federated Learning with Matched Averaging, 2020, arXiv:2002.06440, the data bias of section 4.
        Luminance by ITU-R BT.601 on all three channels; normalised as the set's colour images are.
    """

    data: Data = Cifar10()
    minor: float = 0.05
    oversampled: bool = False
    seed: int = 0

    def validate(self) -> None:
        require(0 <= self.minor <= 0.5, f"grayscale needs minor in [0, 0.5], got minor={self.minor}")

    def read(self) -> Dataset:
        data = self.data.load()
        train_x, test_x = (self._pixels(x) for x in (data.train_x, data.test_x))
        gray_classes = torch.randperm(data.num_classes, generator=self._stream("classes"))[: data.num_classes // 2]
        owners = 1 - torch.isin(data.train_y, gray_classes).long()
        shares = [self.minor] * data.num_classes
        for label in gray_classes.tolist():
            shares[label] = 1 - self.minor
        gray = self._random_gray("train", data.train_y, shares)
        test_gray = self._random_gray("test", data.test_y, [0.5] * data.num_classes)
        keep = self._oversampled_positions(data.train_y, gray) if self.oversampled else slice(None)
        train = _without_colour(train_x, gray)[keep], data.train_y[keep]
        test = _without_colour(test_x, test_gray), data.test_y
        scale = {"mean": data.mean, "std": data.std, "levels": data.levels}
        return Dataset.of("grayscale", train, test, data.num_classes, **scale, owners=owners[keep])

    def location(self) -> str:
        return self.data.location()

    def _pixels(self, x: object) -> Tensor:
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 3:
            have = f"{type(x).__name__} of shape {tuple(getattr(x, 'shape', ()))}"
            raise ValueError(f"grayscale reads colour images (N, 3, H, W) in memory, and {self.data!r} has {have}")
        return x

    def _stream(self, *key: object) -> torch.Generator:
        return make_generator("grayscale", self.seed, *key)

    def _random_gray(self, part: str, labels: Tensor, shares: list[float]) -> Tensor:
        """Whether each image becomes grayscale, with an exact share for every class. Shapes: (N,) -> (N,) bool."""
        gray = torch.zeros(len(labels), dtype=torch.bool)
        for label, share in enumerate(shares):
            members = (labels == label).nonzero().flatten()
            order = torch.randperm(len(members), generator=self._stream(part, label))
            gray[members[order[: round(share * len(members))]]] = True
        return gray

    def _oversampled_positions(self, labels: Tensor, gray: Tensor) -> Tensor:
        """The positions of all images, followed by those of the repeated images."""
        positions = [torch.arange(len(labels))]
        for label in labels.unique().tolist():
            kinds = [((labels == label) & (gray == kind)).nonzero().flatten() for kind in (False, True)]
            few, many = sorted(kinds, key=len)
            sentence = f"grayscale: all {len(many)} images of class {label} are alike, and none is there to draw again"
            require(len(few) > 0, f"{sentence}; raise minor or take more images")
            repeated = torch.randint(len(few), (len(many) - len(few),), generator=self._stream("again", label))
            positions.append(few[repeated])
        return torch.cat(positions)


def _without_colour(images: Tensor, gray: Tensor) -> Tensor:
    """A copy in which the chosen images are grayscale, with three equal channels.

    Shapes: (N, 3, H, W) uint8, (N,) -> (N, 3, H, W).
    """
    out = images.clone()
    out[gray] = luminance(out[gray]).expand(-1, 3, -1, -1)
    return out


def luminance(images: Tensor) -> Tensor:
    """The brightness of each pixel by ITU-R BT.601. Shapes: (N, 3, H, W) uint8 -> (N, 1, H, W) uint8."""
    r, g, b = images.int().unbind(dim=1)
    return ((RED * r + GREEN * g + BLUE * b + 2**15) >> 16).to(torch.uint8)[:, None]

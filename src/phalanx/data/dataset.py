# SPDX-License-Identifier: Apache-2.0
"""Labelled tensors, and the expressions that load them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from phalanx.data.files import folder
from phalanx.expression import Expression, require
from phalanx.registry import entries


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, as the publisher's levels.

    Images stay uint8, a quarter of their size in float32, until `train` or `test` normalises a batch of them. Runs in
    one process share the tensors: never write into them.

    Shapes: train_x (N, C, H, W) uint8, train_y (N,) int64, and the same for the test part.
    Args:
        mean: of each channel, as a fraction of `levels`.
        std: of each channel, as a fraction of `levels`.
        levels: the level that stands for 1.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    levels: int = 255

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            require(len(x) == len(y), f"{self.name}: {len(x)} {part} images, but {len(y)} labels")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        c, h, w = self.train_x.shape[1:]
        return c, h, w

    def train(self, samples: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) and labels (B,) of training samples."""
        return self.inputs(self.train_x[samples]), self.train_y[samples]

    def test(self, samples: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) and labels (B,) of test samples."""
        return self.inputs(self.test_x[samples]), self.test_y[samples]

    def inputs(self, x: Tensor) -> Tensor:
        """What a model reads: (x / levels - mean) / std, channel by channel. Shapes: (B, C, H, W) -> same, float32."""
        mean, std = (torch.tensor(v, device=x.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return x.to(torch.float32, copy=True).mul_(1 / (self.levels * std)).sub_(mean / std)


class Data(Expression, ABC):
    """A data set that a run names."""

    def load(self) -> Dataset:
        """The data set; equal expressions share one copy in the process.

        Raises:
            MissingData: its files are not there and cannot be downloaded; the sentence names the ways out.
            ValueError: its files are damaged.
        """
        return _load(self, folder())

    @abstractmethod
    def read(self) -> Dataset:
        """The data set, read anew."""

    @abstractmethod
    def location(self) -> str:
        """Where the files lie.

        Raises:
            MissingData: they are not there; nothing is downloaded.
        """


@lru_cache(maxsize=4)
def _load(data: Data, source: Path) -> Dataset:
    return data.read()


def found() -> dict[str, str]:
    """Where each data set lies, or why it does not, by name."""
    status = {}
    for entry in entries("data"):
        try:
            status[entry.name] = entry.build().location()
        except ValueError as error:
            status[entry.name] = str(error)
    return status


def spaced(total: int, count: int | None) -> Tensor | slice:
    """`count` of `total` positions at equal distances; all when None. MNIST's test part begins with its easy half."""
    return slice(None) if count is None else torch.arange(count) * total // count


def check_count(name: str, field: str, count: int | None, total: int) -> None:
    """Raises ValueError unless a subset of `count` images can be taken."""
    ok = count is None or 1 <= count <= total
    require(ok, f"{name} has {total} {field} images, so {field} lies between 1 and {total}, got {field}={count}")

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
class Tokens:
    """The shape of an example that is a text: `length` token ids, each in [0, vocabulary); 0 is padding, 1 unknown."""

    length: int
    vocabulary: int

    def __str__(self) -> str:
        return f"sequences of {self.length} token ids"


Shape = tuple[int, int, int] | Tokens  # channels, height and width of an image, or what a text is


@dataclass(frozen=True)
class Dataset:
    """A training and a test part, of images as the publisher's levels or of texts as token ids.

    Images stay uint8, a quarter of their size in float32, until `train` or `test` normalises a batch of them; token ids
    go to the model as they are. Runs in one process share the tensors: never write into them.

    Shapes: train_x (N, C, H, W) uint8 or (N, L) int64, train_y (N,) int64, and the same for the test part.
    Args:
        mean: of each channel, as a fraction of `levels`; () for texts.
        std: of each channel, as a fraction of `levels`; () for texts.
        levels: the level that stands for 1.
        vocabulary: ids that tokens can have; None says that the examples are images.
    Raises:
        ValueError: examples and labels differ in number, or are neither images nor token ids below `vocabulary`.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    levels: int = 255
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            kind = "images" if self.vocabulary is None else "texts"
            require(len(x) == len(y), f"{self.name}: {len(x)} {part} {kind}, but {len(y)} labels")
            self._check(part, x)

    def _check(self, part: str, x: Tensor) -> None:
        shape = tuple(x.shape)
        if self.vocabulary is None:
            ok = x.dim() == 4 and len(self.mean) == len(self.std) == x.shape[1]
            have = f"{shape} with {len(self.mean)} means and {len(self.std)} deviations"
            require(ok, f"{self.name}: {part} images are (N, C, H, W) with a mean and std a channel, got {have}")
            return
        ok = x.dim() == 2 and x.dtype == torch.int64
        require(ok, f"{self.name}: {part} texts are token ids (N, L) of int64, got {shape} of {x.dtype}")
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        ok = low >= 0 and high < self.vocabulary
        require(ok, f"{self.name}: {part} token ids lie in [0, {self.vocabulary}), got {low} to {high}")

    @property
    def shape(self) -> Shape:
        """What an example is."""
        if self.vocabulary is not None:
            return Tokens(self.train_x.shape[1], self.vocabulary)
        c, h, w = self.train_x.shape[1:]
        return c, h, w

    def train(self, samples: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) or token ids (B, L), and labels (B,), of training samples."""
        return self.inputs(self.train_x[samples]), self.train_y[samples]

    def test(self, samples: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) or token ids (B, L), and labels (B,), of test samples."""
        return self.inputs(self.test_x[samples]), self.test_y[samples]

    def inputs(self, x: Tensor) -> Tensor:
        """What a model reads: token ids, or (x / levels - mean) / std, channel by channel, of images.

        Shapes: (B, L) -> the same; (B, C, H, W) -> same, float32, a copy.
        """
        if self.vocabulary is not None:
            return x
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


def check_count(name: str, field: str, count: int | None, total: int, what: str = "images") -> None:
    """Raises ValueError unless a subset of `count` examples can be taken."""
    ok = count is None or 1 <= count <= total
    require(ok, f"{name} has {total} {field} {what}, so {field} lies between 1 and {total}, got {field}={count}")

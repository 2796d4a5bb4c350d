# SPDX-License-Identifier: Apache-2.0
"""Data sets of labelled examples, and the expressions that load them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phalanx.core.expression import Expression, require
from phalanx.core.registry import entries
from phalanx.data.examples import Examples
from phalanx.data.files import data_folder
from phalanx.data.images import Crop, Images, cut
from phalanx.data.shape import PADDING, Pairs, Passage, Shape, Tokens

Part = tuple[Tensor | Images, Tensor]  # examples and labels
SCORED, VALUES = 1000, 2**24  # labels, and values of examples, in a batch of the test at most


@dataclass(frozen=True, eq=False)
class Dataset(Examples):
    """A training part and a test part, of images with the publisher's levels or of texts as token ids.

    Images stay uint8 in memory, a quarter of their size in float32, or on disk (`Images`), until `train` or `test`
    normalises a batch of them. Token ids go to the model unchanged. Labels are always in memory. Runs in one process
    share the tensors: never write into them. Two data sets are equal only if they are the same object.

    Shapes: train_x (N, C, H, W) uint8 or `Images`, (N, L) int64, or pairs of texts (N, 2, L) int64; train_y (N,) int64,
        or (N, L) if every token has a label; the same for the test part, in which L may differ; owners (N,).
    Args:
        mean: mean of each channel, as a fraction of `levels`; () for texts.
        std: standard deviation of each channel, as a fraction of `levels`; () for texts.
        levels: the level that stands for 1.
        vocabulary: number of different token ids; None if the examples are images.
        owners: owner of each training example, such as a speaker, for `by_owner()`; None if unknown.
        words: the word of each token id; () for images, or if no one needs the words.
        added: number of training examples at the end that `assign_added` gives to a few units; the inner partition
            gives them to no unit.
    Raises:
        ValueError: the numbers of examples, labels and owners differ, examples are neither images nor token ids below
            `vocabulary`, or the numbers of words and ids differ.
    """

    name: str
    train_x: Tensor | Images
    train_y: Tensor
    test_x: Tensor | Images
    test_y: Tensor
    num_classes: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    levels: int = 255
    vocabulary: int | None = None
    owners: Tensor | None = None
    words: tuple[str, ...] = ()
    added: int = 0

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            kind = "images" if self.vocabulary is None else "texts"
            require(len(x) == len(y), f"{self.name}: {len(x)} {part} {kind}, but {len(y)} labels")
            self._check(part, x)
            ok = y.dim() == 1 or (self.vocabulary is not None and y.dim() == 2 and y.shape[1] == x.shape[-1])
            have = f"{tuple(y.shape)} for {tuple(x.shape)}"
            require(ok, f"{self.name}: {part} labels are (N,), or (N, L) for texts of L tokens, got {have}")
            require(
                len(x.shape) != 3 or y.dim() == 2, f"{self.name}: pairs of texts need {part} labels (N, L), got {have}"
            )
        if self.owners is not None:
            count, have = len(self.train_y), f"{tuple(self.owners.shape)} of {self.owners.dtype}"
            ok = self.owners.shape == (count,) and self.owners.dtype == torch.int64
            require(ok, f"{self.name}: owners are int64, one for each of {count} training examples, got {have}")
        ok = len(self.words) in (0, self.vocabulary)
        require(ok, f"{self.name}: {len(self.words)} words stand for {self.vocabulary} token ids")
        ok = 0 <= self.added <= len(self.train_y)
        require(ok, f"{self.name}: {self.added} added examples are among {len(self.train_y)} to train on")

    def _check(self, part: str, x: Tensor | Images) -> None:
        shape = tuple(x.shape)
        if self.vocabulary is None:
            ok = len(shape) == 4 and len(self.mean) == len(self.std) == x.shape[1]
            have = f"{shape} with {len(self.mean)} means and {len(self.std)} deviations"
            require(ok, f"{self.name}: {part} images are (N, C, H, W) with a mean and std a channel, got {have}")
            return
        if not isinstance(x, Tensor):
            raise ValueError(f"{self.name}: {part} texts are a tensor of token ids, got {type(x).__name__}")
        ok = (x.dim() == 2 or (x.dim() == 3 and x.shape[1] == 2)) and x.dtype == torch.int64
        have = f"{shape} of {x.dtype}"
        require(ok, f"{self.name}: {part} texts are token ids (N, L) or (N, 2, L) of int64, got {have}")
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        ok = low >= 0 and high < self.vocabulary
        require(ok, f"{self.name}: {part} token ids lie in [0, {self.vocabulary}), got {low} to {high}")

    @staticmethod
    def of(name: str, train: Part, test: Part, num_classes: int, **fields: Any) -> Dataset:
        """A data set from the examples and labels of its two parts, and its other fields by name."""
        return Dataset(name, *train, *test, num_classes, **fields)

    @property
    def num_train(self) -> int:
        return len(self.train_y)

    @property
    def num_test(self) -> int:
        return len(self.test_y)

    @property
    def keys(self) -> Tensor:
        return self.train_y

    @property
    def test_batch(self) -> int:
        # a text that is scored at every token has as many rows of scores
        return max(1, min(SCORED // math.prod(self.test_y.shape[1:]), VALUES // math.prod(self.test_x.shape[1:])))

    @property
    def shape(self) -> Shape:
        if self.vocabulary is None:
            c, h, w = self.train_x.shape[1:]
            return c, h, w
        kind = Pairs if len(self.train_x.shape) == 3 else Tokens if self.train_y.dim() == 1 else Passage
        return kind(self.train_x.shape[-1], self.vocabulary)

    def untested(self) -> Dataset:
        """The data set without its test part, for a process that does not test."""
        x = torch.empty((0, *self.test_x.shape[1:]), dtype=torch.uint8 if self.vocabulary is None else torch.int64)
        return replace(self, test_x=x, test_y=self.test_y[:0])

    def train(
        self, samples: Tensor | slice, crops: Sequence[Crop] | None = None, *, key: tuple[object, ...] = ()
    ) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) or token ids (B, L) or (B, 2, L), and labels (B,) or (B, L), to train on.

        Args:
            crops: the part of each image to read and resize; None reads images as the test does.
        """
        x = self.train_x[samples] if crops is None else cut(self.train_x, samples, crops)
        return self._batch(x, self.train_y[samples])

    def test(self, samples: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Normalised images (B, C, H, W) or token ids (B, L) or (B, 2, L), and labels (B,) or (B, L), to test on."""
        return self._batch(self.test_x[samples], self.test_y[samples])

    def _batch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.dim() == 3:
            # drops the columns that are padding in every text of the batch
            used = int((x != PADDING).any(dim=(0, 1)).sum().clamp(min=1))
            x, y = x[..., :used], y[..., :used]
        return self.inputs(x), y

    def inputs(self, x: Tensor) -> Tensor:
        """The input of a model: token ids unchanged, and (x / levels - mean) / std for each channel of images.

        Shapes: (B, L) and (B, 2, L) -> the same tensor; (B, C, H, W) -> a float32 copy of the same shape.
        """
        if self.vocabulary is not None:
            return x
        scale, shift = self._normalization if x.device.type == "cpu" else (t.to(x.device) for t in self._normalization)
        return x.to(torch.float32, copy=True).mul_(scale).sub_(shift)

    @cached_property
    def _normalization(self) -> tuple[Tensor, Tensor]:
        """What pixels are multiplied by, and what is then subtracted, channel by channel."""
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return 1 / (self.levels * std), mean / std


def labelled(data: Examples, what: object) -> Dataset:
    """The data, whose images or texts and labels are in memory.

    Args:
        what: that needs them, for the sentence.
    Raises:
        ValueError: they are datasets of the user's own.
    """
    if not isinstance(data, Dataset):
        raise ValueError(
            f"{what!r} needs images or texts with class labels in memory, a phalanx.data.Dataset, and {data.name} is a "
            "dataset of your own; leave it out"
        )
    return data


class Data(Expression, ABC):
    """An expression that names a data set."""

    def load(self) -> Any:
        """The data set; equal expressions share one copy in the process.

        Raises:
            MissingData: a file is missing and cannot be downloaded; the sentence names the ways out.
            ValueError: its files are damaged.
        """
        return _load(self, data_folder())

    @abstractmethod
    def read(self) -> Examples:
        """Reads the data set from its files, without a cache."""

    @abstractmethod
    def location(self) -> str:
        """The place of the files.

        Raises:
            MissingData: a file is missing; nothing is downloaded.
        """


@lru_cache(maxsize=4)
def _load(data: Data, source: Path) -> Examples:
    return data.read()


def locations() -> dict[str, str]:
    """For each data set by name, the place of its files, or the sentence that says what is missing."""
    status = {}
    for entry in entries("data"):
        if any(p.default is p.empty for p in entry.signature.parameters.values()):
            continue  # data of the user's own
        try:
            status[entry.name] = entry.build().location()
        except ValueError as error:
            status[entry.name] = str(error)
    return status


def evenly_spaced(total: int, count: int | None) -> Tensor | slice:
    """`count` of `total` positions at equal distances; all when None.

    The first ones would not do: MNIST's test part begins with its easy half.
    """
    return slice(None) if count is None else torch.arange(count) * total // count


def check_count(name: str, field: str, count: int | None, total: int, what: str = "images") -> None:
    """Raises ValueError unless `count` is None or from 1 to `total`."""
    ok = count is None or 1 <= count <= total
    require(ok, f"{name} has {total} {field} {what}, so {field} lies between 1 and {total}, got {field}={count}")

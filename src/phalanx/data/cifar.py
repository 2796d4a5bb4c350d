# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 in the publisher's binary records.

A record holds the label (CIFAR-100: the group of classes, then the label), and then the red, the green and the blue
plane of an image of 32x32 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.core.expression import method, require
from phalanx.data.dataset import Data, Dataset, check_count, evenly_spaced
from phalanx.data.files import data_folder, download, extract, missing_data

PIXEL_BYTES = 3 * 32 * 32
NUM_TRAIN, NUM_TEST = 50_000, 10_000

Size = Literal[32, 16]  # side of an image in pixels


@dataclass(frozen=True)
class CifarFiles:
    """The files of one of the two data sets.

    Args:
        name: the data set's name in an expression.
        title: the data set's name in an error.
        url: address of the publisher's archive.
        md5: checksum of the archive.
        folder: name of the folder in the archive.
        train: names of the training files; all have equally many records.
        test: names of the test files.
        num_labels: bytes before the pixels; the last of them is the label.
        num_classes: number of classes.
    """

    name: str
    title: str
    url: str
    md5: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_labels: int
    num_classes: int

    @property
    def path(self) -> Path:
        """The folder that holds the files."""
        return data_folder() / self.folder

    def location(self) -> str:
        """The folder as text.

        Raises:
            MissingData: a file is missing.
        """
        if self._incomplete():
            raise missing_data(self.name, self.path)
        return str(self.path)

    def load(
        self, train: int | None, test: int | None, size: Size, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Dataset:
        """The data set; the archive is downloaded first if a file is missing.

        Args:
            train, test: images of each part; all when None.
            size: side of an image in pixels.
            mean, std: of each channel, as a fraction of 255.
        Raises:
            MissingData: a file is missing and the download fails.
            ValueError: a file is damaged.
        """
        if self._incomplete():
            archive = self.url.rpartition("/")[2]
            members = [f"{self.folder}/{name}" for name in self.train + self.test]
            sources = {archive: (self.url, self.md5)}
            download(self.name, sources, self.path, lambda work: extract(work / archive, members, work))
        train_part = self._part(self.train, NUM_TRAIN, train, size)
        test_part = self._part(self.test, NUM_TEST, test, size)
        return Dataset.of(self.name, train_part, test_part, self.num_classes, mean=mean, std=std)

    def records(self, path: Path) -> tuple[Tensor, Tensor]:
        """Images and labels of one file.

        Shapes: (N, 3, 32, 32) uint8 and (N,) int64.
        Raises:
            ValueError: the file is not a whole number of records, or a label is too large.
        """
        data, record_bytes = bytearray(path.read_bytes()), self.num_labels + PIXEL_BYTES
        rest = len(data) % record_bytes
        fetch = "delete it and fetch it again"
        require(len(data) > 0, f"{path} is empty; {fetch}")
        require(not rest, f"{path} holds {len(data)} bytes, {rest} more than whole records of {record_bytes}; {fetch}")
        records = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, record_bytes)
        labels, last = records[:, self.num_labels - 1].long(), self.num_classes - 1
        high = int(labels.max())
        require(high <= last, f"{path} has a label {high}, and {self.title} has 0 to {last}; {fetch}")
        return records[:, self.num_labels :].reshape(-1, 3, 32, 32), labels

    def _incomplete(self) -> bool:
        return not all((self.path / name).exists() for name in self.train + self.test)

    def _part(self, names: tuple[str, ...], total: int, count: int | None, size: Size) -> tuple[Tensor, Tensor]:
        """`count` of the `total` images in some files, and their labels."""
        images, labels = zip(*(self.records(self.path / name) for name in names), strict=True)
        per_file = total // len(names)
        for name, y in zip(names, labels, strict=True):
            path = self.path / name
            require(len(y) == per_file, f"{self.name}: {path} has {len(y)} records, and should have {per_file}")
        keep = evenly_spaced(total, count)
        x = torch.cat(images)[keep]
        return (_halve(x) if size == 16 else x), torch.cat(labels)[keep]


CIFAR10 = CifarFiles(
    name="cifar10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    num_labels=1,
    num_classes=10,
)
CIFAR100 = CifarFiles(
    name="cifar100",
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    num_labels=2,  # one of 20 groups of classes, then the class
    num_classes=100,
)


@method("cifar10", "data")
class Cifar10(Data):
    """Photographs of 32x32 pixels in 10 classes, 50,000 to train on and 10,000 to test on.

    The six .bin files lie in cifar-10-batches-bin of the data folder.

    Shapes: images (N, 3, size, size) uint8, labels (N,) int64 from 0 to 9.
    Args:
        train: training images, taken at equal distances from the 50,000; all when None.
        test: test images, taken at equal distances from the 10,000; all when None.
        size: side in pixels; 16 averages 2x2 pixels, rounded to whole levels, which makes a step about 4 times cheaper.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    train: int | None = None
    test: int | None = None
    size: Size = 32

    def validate(self) -> None:
        check_count("cifar10", "train", self.train, NUM_TRAIN)
        check_count("cifar10", "test", self.test, NUM_TEST)

    def read(self) -> Dataset:
        # the dissertation's numbers, section 5.4.3: 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255
        mean, std = (0.491372549, 0.482352941, 0.446666667), (0.247058824, 0.243529412, 0.261568627)
        return CIFAR10.load(self.train, self.test, self.size, mean, std)

    def location(self) -> str:
        return CIFAR10.location()


@method("cifar100", "data")
class Cifar100(Data):
    """Photographs of 32x32 pixels in 100 classes, 50,000 to train on and 10,000 to test on.

    The files train.bin and test.bin lie in cifar-100-binary of the data folder.

    Shapes: images (N, 3, size, size) uint8, labels (N,) int64 from 0 to 99.
    Args:
        train: training images, taken at equal distances from the 50,000; all when None.
        test: test images, taken at equal distances from the 10,000; all when None.
        size: side in pixels; 16 averages 2x2 pixels, rounded to whole levels, which makes a step about 4 times cheaper.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    train: int | None = None
    test: int | None = None
    size: Size = 32

    def validate(self) -> None:
        check_count("cifar100", "train", self.train, NUM_TRAIN)
        check_count("cifar100", "test", self.test, NUM_TEST)

    def read(self) -> Dataset:
        return CIFAR100.load(self.train, self.test, self.size, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

    def location(self) -> str:
        return CIFAR100.location()


def _halve(images: Tensor) -> Tensor:
    """Images of half the side, each pixel the mean of 2x2. Shapes: (N, C, H, W) -> (N, C, H / 2, W / 2)."""
    pooled = [F.avg_pool2d(chunk.float(), 2).round().to(torch.uint8) for chunk in images.split(5_000)]
    return torch.cat(pooled)

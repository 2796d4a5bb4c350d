# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in the publisher's binary records."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.data.dataset import Data, Dataset, check_count, spaced
from phalanx.data.files import download, extract, folder, missing
from phalanx.expression import method, require

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
PLACE = "cifar-10-batches-bin"
TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = ("test_batch.bin",)
RECORD_BYTES = 1 + 3 * 32 * 32


@method("cifar10", "data")
class Cifar10(Data):
    """Photographs of 32x32 pixels in 10 classes, 50,000 to train on and 10,000 to test on.

    The six .bin files lie in cifar-10-batches-bin of the data folder.

    Args:
        train: images to train on, taken at equal distances from the 50,000; all when None.
        test: images to test on, taken at equal distances from the 10,000; all when None.
        size: side in pixels; 16 averages 2x2 pixels, rounded to whole levels, which makes a step about 4 times cheaper.
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    train: int | None = None
    test: int | None = None
    size: Literal[32, 16] = 32

    def validate(self) -> None:
        check_count("cifar10", "train", self.train, 50_000)
        check_count("cifar10", "test", self.test, 10_000)

    def read(self) -> Dataset:
        place = folder() / PLACE
        if _absent(place):
            names = [f"{PLACE}/{name}" for name in TRAIN + TEST]
            download("cifar10", {ARCHIVE: (URL, MD5)}, place, lambda work: extract(work / ARCHIVE, names, work))
        train_x, train_y = _read(place, TRAIN, self.train)
        test_x, test_y = _read(place, TEST, self.test)
        if self.size == 16:
            train_x, test_x = _halve(train_x), _halve(test_x)
        # the dissertation's numbers, section 5.4.3: 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255
        mean, std = (0.491372549, 0.482352941, 0.446666667), (0.247058824, 0.243529412, 0.261568627)
        return Dataset("cifar10", train_x, train_y, test_x, test_y, 10, mean, std)

    def location(self) -> str:
        place = folder() / PLACE
        if _absent(place):
            raise missing("cifar10", place)
        return str(place)


def read_records(path: Path) -> tuple[Tensor, Tensor]:
    """Images and labels of a file of 3,073-byte records: label, then the red, green and blue planes.

    Shapes: (N, 3, 32, 32) uint8 and (N,) int64.
    Raises:
        ValueError: the file is no whole number of records, or a label is above 9.
    """
    data = bytearray(path.read_bytes())
    rest = len(data) % RECORD_BYTES
    fetch = "delete it and fetch it again"
    require(len(data) > 0, f"{path} is empty; {fetch}")
    require(not rest, f"{path} holds {len(data)} bytes, {rest} more than whole records of {RECORD_BYTES}; {fetch}")
    records = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, RECORD_BYTES)
    labels = records[:, 0].long()
    require(int(labels.max()) <= 9, f"{path} has a label {int(labels.max())}, and CIFAR-10 has 0 to 9; {fetch}")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels


def _read(place: Path, names: tuple[str, ...], count: int | None) -> tuple[Tensor, Tensor]:
    images, labels = zip(*(read_records(place / name) for name in names), strict=True)
    for name, y in zip(names, labels, strict=True):
        require(len(y) == 10_000, f"cifar10: {place / name} has {len(y)} records, and should have 10000")
    keep = spaced(10_000 * len(names), count)
    return torch.cat(images)[keep], torch.cat(labels)[keep]


def _halve(images: Tensor) -> Tensor:
    pooled = [F.avg_pool2d(chunk.float(), 2).round().to(torch.uint8) for chunk in images.split(5_000)]
    return torch.cat(pooled)


def _absent(place: Path) -> bool:
    return not all((place / name).exists() for name in TRAIN + TEST)

# SPDX-License-Identifier: Apache-2.0
"""The binary records of the two CIFAR sets: labels, then the red, green and blue planes of 32x32 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from phalanx.core.expression import require
from phalanx.data.dataset import spaced
from phalanx.data.files import download, extract, folder, missing

PIXEL_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """How a publisher's archive is laid out.

    Args:
        title: the set's name in an error.
        place: the folder in the archive.
        train: its files, of equally many records.
        num_labels: bytes before the pixels; the last of them is the label.
    """

    name: str
    title: str
    archive: str
    place: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    num_labels: int
    num_classes: int

    @property
    def where(self) -> Path:
        """Where its files lie."""
        return folder() / self.place

    def absent(self) -> bool:
        """Whether a file is missing."""
        return not all((self.where / name).exists() for name in self.train + self.test)

    def location(self) -> str:
        """The folder as a text; MissingData if a file is missing."""
        if self.absent():
            raise missing(self.name, self.where)
        return str(self.where)

    def fetch(self, url: str, md5: str) -> None:
        """Downloads the archive where a file is missing; MissingData if that fails."""
        if self.absent():
            names = [f"{self.place}/{name}" for name in self.train + self.test]
            sources = {self.archive: (url, md5)}
            download(self.name, sources, self.where, lambda work: extract(work / self.archive, names, work))

    def records(self, path: Path) -> tuple[Tensor, Tensor]:
        """Images and labels of one file.

        Shapes: (N, 3, 32, 32) uint8 and (N,) int64.
        Raises:
            ValueError: the file is no whole number of records, or a label is too large.
        """
        data, each = bytearray(path.read_bytes()), self.num_labels + PIXEL_BYTES
        rest = len(data) % each
        fetch = "delete it and fetch it again"
        require(len(data) > 0, f"{path} is empty; {fetch}")
        require(not rest, f"{path} holds {len(data)} bytes, {rest} more than whole records of {each}; {fetch}")
        records = torch.frombuffer(data, dtype=torch.uint8).reshape(-1, each)
        labels, last = records[:, self.num_labels - 1].long(), self.num_classes - 1
        high = int(labels.max())
        require(high <= last, f"{path} has a label {high}, and {self.title} has 0 to {last}; {fetch}")
        return records[:, self.num_labels :].reshape(-1, 3, 32, 32), labels

    def part(self, names: tuple[str, ...], total: int, count: int | None, size: int) -> tuple[Tensor, Tensor]:
        """`count` of the `total` images in some files, `size` pixels wide, and their labels."""
        images, labels = zip(*(self.records(self.where / name) for name in names), strict=True)
        each = total // len(names)
        for name, y in zip(names, labels, strict=True):
            path = self.where / name
            require(len(y) == each, f"{self.name}: {path} has {len(y)} records, and should have {each}")
        keep = spaced(total, count)
        x = torch.cat(images)[keep]
        return (_halve(x) if size == 16 else x), torch.cat(labels)[keep]


def _halve(images: Tensor) -> Tensor:
    pooled = [F.avg_pool2d(chunk.float(), 2).round().to(torch.uint8) for chunk in images.split(5_000)]
    return torch.cat(pooled)

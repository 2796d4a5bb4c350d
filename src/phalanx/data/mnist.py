# SPDX-License-Identifier: Apache-2.0
"""MNIST in the publisher's idx files."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.data.dataset import Data, Dataset, check_count, spaced
from phalanx.data.files import download, folder, missing
from phalanx.data.idx import read_idx

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}


@method("mnist", "data")
class Mnist(Data):
    """Handwritten digits of 28x28 pixels, 60,000 to train on and 10,000 to test on.

    The four files, plain or .gz, lie in MNIST/raw of the data folder.

    Args:
        train: images to train on, taken at equal distances from the 60,000; all when None.
        test: images to test on, taken at equal distances from the 10,000; all when None.
    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998.
    """

    train: int | None = None
    test: int | None = None

    def validate(self) -> None:
        check_count("mnist", "train", self.train, 60_000)
        check_count("mnist", "test", self.test, 10_000)

    def read(self) -> Dataset:
        place = folder() / "MNIST" / "raw"
        if _absent(place):
            sources = {f"{name}.gz": (f"{MIRROR}{name}.gz", md5) for name, md5 in MD5.items()}
            download("mnist", sources, place, unpack=lambda work: None)
        train_x, train_y = _read(place, "train", 60_000)
        test_x, test_y = _read(place, "t10k", 10_000)
        a, b = spaced(60_000, self.train), spaced(10_000, self.test)
        return Dataset("mnist", train_x[a], train_y[a], test_x[b], test_y[b], 10, mean=(0.1307,), std=(0.3081,))

    def location(self) -> str:
        place = folder() / "MNIST" / "raw"
        if _absent(place):
            raise missing("mnist", place)
        return str(place)


def _read(place: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    images = read_idx(_path(place, f"{part}-images-idx3-ubyte"), num_dims=3)
    labels = read_idx(_path(place, f"{part}-labels-idx1-ubyte"), num_dims=1)
    right = images.shape == (count, 28, 28) and labels.shape == (count,)
    shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
    require(right, f"mnist: the {part} images and labels in {place} are {shapes}, and should be {count} of 28 x 28")
    require(int(labels.max()) <= 9, f"mnist: the {part} labels in {place} go up to {int(labels.max())}, not to 9")
    return images.unsqueeze(1), labels.long()


def _path(place: Path, name: str) -> Path:
    plain = place / name
    return plain if plain.exists() else place / f"{name}.gz"


def _absent(place: Path) -> bool:
    return not all(_path(place, name).exists() for name in MD5)

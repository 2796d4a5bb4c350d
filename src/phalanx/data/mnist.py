# SPDX-License-Identifier: Apache-2.0
"""MNIST in the publisher's idx files."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.limits import gunzip
from phalanx.data.dataset import Data, Dataset, check_count, evenly_spaced
from phalanx.data.files import data_folder, download, missing_data

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_MOST_BYTES = 1 << 30  # of an unpacked file
MD5 = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
UNSIGNED_BYTES = 0x08  # the kind of entry in an idx header


@method("mnist", "data")
class Mnist(Data):
    """Handwritten digits of 28x28 pixels, 60,000 to train on and 10,000 to test on.

    The four files, plain or .gz, lie in MNIST/raw of the data folder.

    Shapes: images (N, 1, 28, 28) uint8, labels (N,) int64 from 0 to 9.
    Args:
        train: training images, taken at equal distances from the 60,000; all when None.
        test: test images, taken at equal distances from the 10,000; all when None.
    Source: LeCun, Cortes and Burges, The MNIST database of handwritten digits, 1998.
    """

    train: int | None = None
    test: int | None = None

    def validate(self) -> None:
        check_count("mnist", "train", self.train, 60_000)
        check_count("mnist", "test", self.test, 10_000)

    def read(self) -> Dataset:
        place = data_folder() / "MNIST" / "raw"
        if _absent(place):
            sources = {f"{name}.gz": (f"{MIRROR}{name}.gz", md5) for name, md5 in MD5.items()}
            download("mnist", sources, place, unpack=lambda work: None)
        train_x, train_y = _read(place, "train", 60_000)
        test_x, test_y = _read(place, "t10k", 10_000)
        a, b = evenly_spaced(60_000, self.train), evenly_spaced(10_000, self.test)
        return Dataset.of("mnist", (train_x[a], train_y[a]), (test_x[b], test_y[b]), 10, mean=(0.1307,), std=(0.3081,))

    def location(self) -> str:
        place = data_folder() / "MNIST" / "raw"
        if _absent(place):
            raise missing_data("mnist", place)
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


def read_idx(path: Path, num_dims: int) -> Tensor:
    """The uint8 tensor in an idx file, plain or compressed by gzip (recognised by its first bytes, not its name).

    Args:
        num_dims: dimensions that the file must have: 3 for images, 1 for labels.
    Raises:
        ValueError: another magic number, another number of dimensions, or more or fewer bytes than the sizes say.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gunzip(data, str(path), _MOST_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}; delete it and fetch it again") from None
    start = 4 + 4 * num_dims
    if len(data) < start:
        raise ValueError(f"{path} is no idx file: {len(data)} bytes are less than its header of {start}")
    zero, kind, dims = struct.unpack(">HBB", data[:4])
    if zero or kind != UNSIGNED_BYTES:
        raise ValueError(f"{path} is no idx file of bytes: it begins with {data[:4].hex()}, not with 000008")
    if dims != num_dims:
        raise ValueError(f"{path} has {dims} dimensions, and {num_dims} are expected; is it the right file?")
    sizes = struct.unpack(f">{dims}I", data[4:start])
    expected = math.prod(sizes)
    if len(data) - start != expected:
        raise ValueError(
            f"{path} says {' x '.join(map(str, sizes))} = {expected} bytes and holds {len(data) - start}; "
            "delete it and fetch it again"
        )
    body = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start) if expected else torch.empty(0)
    return body.to(torch.uint8).reshape(sizes)

# SPDX-License-Identifier: Apache-2.0
"""Data sets in folders of image files, such as ImageNet."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.optional import optional
from phalanx.core.parallel import parallel_map
from phalanx.data.dataset import Data, Dataset, check_count, evenly_spaced
from phalanx.data.files import MissingData, data_folder
from phalanx.data.images import Box, Crop, Images

CROPPED, RESIZED = 224, 256  # the test reads 224 pixels of a shorter side of 256
WIDE = ("I", "F")  # first letters of Pillow's modes with more than 8 bits for each channel


@method("image_folder", "data")
class ImageFolder(Data):
    """Files root/train/CLASS/NAME and root/val/CLASS/NAME, ImageNet's layout, each read when a batch needs it.

    The labels are the folders of root/train in the order of their names; names that begin with a dot are ignored. The
    test resizes the shorter side of an image to size 256 / 224 and reads the middle square; so does training, unless
    the run has an augmentation that crops (`resized_crop_flip`). Files become RGB: a gray channel is repeated, and
    transparency is dropped. The files of a batch are decoded in parallel, in as many threads as the run has.

    Shapes: images (N, 3, size, size) uint8, labels (N,) int64.
    Args:
        root: the folder with train and val, absolute or relative to the data folder.
        size: side in pixels of the images that a model reads, >= 1.
        train: training images, taken at equal distances from the files in order; all when None.
        test: test images, taken at equal distances from the files in order; all when None.
    Raises:
        ValueError: Pillow is not installed, or a file is no image; the sentence names the file.
    Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015, arXiv:1409.0575; the mean and
        deviation of its channels as in the reference recipes of PyTorch.
    """

    root: str = "imagenet"
    size: int = 224
    train: int | None = None
    test: int | None = None

    def validate(self) -> None:
        require(self.size >= 1, f"image_folder needs size >= 1 pixel, got size={self.size}")
        for field, count in (("train", self.train), ("test", self.test)):
            require(count is None or count >= 1, f"image_folder needs {field} >= 1 images, got {field}={count}")

    def read(self) -> Dataset:
        readable = _pillow().registered_extensions()
        self.location()
        classes = [entry.name for entry in _listed(self._part("train"), folders=True)]
        labels = {name: label for label, name in enumerate(classes)}
        train = self._read("train", labels, readable, self.train)
        test = self._read("val", labels, readable, self.test)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        return Dataset.of("image_folder", train, test, len(classes), mean=mean, std=std)

    def _read(
        self, part: str, labels: dict[str, int], readable: Container[str], count: int | None
    ) -> tuple[Images, Tensor]:
        place = self._part(part)
        files: list[str] = []
        owners: list[int] = []
        for entry in _listed(place, folders=True):
            known = entry.name in labels
            require(known, f"{entry.path} is no class, as {self._part('train')} has no folder {entry.name}")
            inside = [f"{entry.name}/{file.name}" for file in _listed(Path(entry.path), folders=False)]
            require(len(inside) > 0, f"{entry.path} is empty; put its images there, or remove it")
            for file in inside:
                ok = Path(file).suffix.lower() in readable
                require(ok, f"{place / file} has no name of an image file, as a.jpeg is; remove it")
            files += inside
            owners += [labels[entry.name]] * len(inside)
        require(len(files) > 0, f"{place} has no folders of images; a part has one for each class")
        check_count("image_folder", "train" if part == "train" else "test", count, len(files))
        keep = torch.arange(len(files))[evenly_spaced(len(files), count)]
        return Files(place, [files[i] for i in keep.tolist()], self.size), torch.tensor(owners)[keep]

    def _part(self, part: str) -> Path:
        return data_folder() / Path(self.root).expanduser() / part

    def location(self) -> str:
        for part in ("train", "val"):
            if not self._part(part).is_dir():
                raise MissingData(
                    f"image_folder: there is no folder {self._part(part)}; ImageNet cannot be downloaded without an "
                    "account, so set PHALANX_DATA to a folder that has it, or name another root"
                )
        return str(self._part("train").parent)


def _listed(place: Path, folders: bool) -> list[os.DirEntry[str]]:
    """The entries of a folder by name; ValueError if they are not all folders, or not all files."""
    with os.scandir(place) as scanned:
        entries = sorted((e for e in scanned if not e.name.startswith(".")), key=lambda e: e.name)
    for entry in entries:
        sentence = "no folder; every image lies in the folder of its class" if folders else "no file; remove it"
        require(entry.is_dir() == folders, f"{entry.path} is {sentence}")
    return entries


class Files(Images):
    """Image files in a folder, read as 8-bit RGB.

    Args:
        place: the folder.
        names: paths of the files below the folder.
        size: side in pixels of the images that a model reads.
    """

    def __init__(self, place: Path, names: Sequence[str], size: int) -> None:
        self.place, self.names, self.size = place, tuple(names), size
        self.shape = torch.Size((len(names), 3, size, size))

    def __getitem__(self, samples: Tensor | slice) -> Tensor:
        return self._read(samples, None)

    def cut(self, samples: Tensor | slice, crops: Sequence[Crop]) -> Tensor:
        return self._read(samples, crops)

    def _read(self, samples: Tensor | slice, crops: Sequence[Crop] | None) -> Tensor:
        chosen = torch.arange(len(self))[samples].tolist()
        boxes: Sequence[Callable[[int, int], Any]] = [self._middle] * len(chosen) if crops is None else crops
        pixels = parallel_map(lambda pair: self._pixels(*pair), zip(chosen, boxes, strict=True))
        rows = np.stack(pixels) if pixels else np.empty((0, self.size, self.size, 3), np.uint8)
        return torch.from_numpy(rows).permute(0, 3, 1, 2).contiguous()

    def _middle(self, height: int, width: int) -> tuple[float, float, float, float]:
        """The middle square that the test reads, in pixels of the original image."""
        short = round(self.size * RESIZED / CROPPED)
        h, w = (short * side // min(height, width) for side in (height, width))
        top, left = round((h - self.size) / 2), round((w - self.size) / 2)
        down, across = height / h, width / w
        return left * across, top * down, (left + self.size) * across, (top + self.size) * down

    def _pixels(self, index: int, box_of: Callable[[int, int], Box]) -> np.ndarray:
        """The part of a file that is read, resized. Shapes: -> (size, size, 3) uint8."""
        path, pillow = self.place / self.names[index], _pillow()
        try:
            with pillow.open(path) as image:
                require(not image.mode.startswith(WIDE), f"mode {image.mode} has more than 8 bits a channel")
                box = box_of(image.height, image.width)
                rgb = image.convert("RGB").resize((self.size, self.size), pillow.Resampling.BILINEAR, box=box)
        except Exception as error:  # on malicious bytes the decoders may raise anything
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{path} is no image that can be read ({reason}); replace it or remove it") from error
        return np.asarray(rgb)


def _pillow() -> Any:
    return optional("PIL.Image", "image_folder", "Pillow", "images")

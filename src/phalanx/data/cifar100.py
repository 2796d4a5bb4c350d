# SPDX-License-Identifier: Apache-2.0
"""CIFAR-100 in the publisher's binary records."""

from __future__ import annotations

from typing import Literal

from phalanx.core.expression import method
from phalanx.data.cifar import Cifar
from phalanx.data.dataset import Data, Dataset, check_count

FILES = Cifar(
    name="cifar100",
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    place="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    num_labels=2,  # one of 20 groups of classes, then the class
    num_classes=100,
)
URL = f"https://www.cs.toronto.edu/~kriz/{FILES.archive}"
MD5 = "03b5dce01913d631647c71ecec9e9cb8"


@method("cifar100", "data")
class Cifar100(Data):
    """Photographs of 32x32 pixels in 100 classes, 50,000 to train on and 10,000 to test on.

    The files train.bin and test.bin lie in cifar-100-binary of the data folder.

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
        check_count("cifar100", "train", self.train, 50_000)
        check_count("cifar100", "test", self.test, 10_000)

    def read(self) -> Dataset:
        FILES.fetch(URL, MD5)
        train = FILES.part(FILES.train, 50_000, self.train, self.size)
        test = FILES.part(FILES.test, 10_000, self.test, self.size)
        mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
        return Dataset("cifar100", *train, *test, FILES.num_classes, mean, std)

    def location(self) -> str:
        return FILES.location()

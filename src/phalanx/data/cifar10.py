# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in the publisher's binary records."""

from __future__ import annotations

from typing import Literal

from phalanx.core.expression import method
from phalanx.data.cifar import Cifar
from phalanx.data.dataset import Data, Dataset, check_count

FILES = Cifar(
    name="cifar10",
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    place="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    num_labels=1,
    num_classes=10,
)
URL = f"https://www.cs.toronto.edu/~kriz/{FILES.archive}"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"


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
        FILES.fetch(URL, MD5)
        train = FILES.part(FILES.train, 50_000, self.train, self.size)
        test = FILES.part(FILES.test, 10_000, self.test, self.size)
        # the dissertation's numbers, section 5.4.3: 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255
        mean, std = (0.491372549, 0.482352941, 0.446666667), (0.247058824, 0.243529412, 0.261568627)
        return Dataset("cifar10", *train, *test, FILES.num_classes, mean, std)

    def location(self) -> str:
        return FILES.location()

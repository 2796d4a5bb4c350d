# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits from scikit-learn, which need no file and no network."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phalanx.core.expression import method
from phalanx.core.round import make_generator
from phalanx.data.dataset import Data, Dataset

NUM_TRAIN = 1437


@method("digits", "data")
class Digits(Data):
    """The 1,797 digits of 8x8 pixels in scikit-learn: 1,437 to train on and 360 to test on, always in the same split.

    Shapes: images (N, 1, 8, 8) uint8 with levels 0 to 16, labels (N,) int64 from 0 to 9.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998 (the test part of the UCI set).
    """

    def read(self) -> Dataset:
        images, labels = _load_digits()
        x = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 8, 8)
        y = torch.from_numpy(labels).to(torch.int64)
        order = torch.randperm(len(y), generator=make_generator("digits"))
        train, test = ((x[samples], y[samples]) for samples in (order[:NUM_TRAIN], order[NUM_TRAIN:]))
        return Dataset.of("digits", train, test, 10, mean=(0.3053,), std=(0.3761,), levels=16)

    def location(self) -> str:
        return "part of scikit-learn"


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 64) and labels (N,) of `sklearn.datasets.load_digits`, without the second that its import takes."""
    spec = find_spec("sklearn")
    file = Path(spec.origin or "").parent / "datasets/data/digits.csv.gz" if spec is not None else Path()
    if file.is_file():
        with gzip.open(file, "rt") as lines:
            table = np.array([line.split(",") for line in lines], dtype=np.float64)
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    data: Any = load_digits(return_X_y=True)
    return data

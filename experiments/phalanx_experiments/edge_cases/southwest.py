# SPDX-License-Identifier: Apache-2.0
"""Aeroplanes in the colours of one airline, which the attacker labels as trucks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.backdoors.fitted import fitted
from phalanx.core.expression import method, require
from phalanx.data.dataset import Dataset
from phalanx_experiments.edge_cases.published import arrays, check_bytes

AIRPLANE, TRUCK = 0, 9  # CIFAR-10's
HELD = {100: None, 50: "almost_edge", 10: "normal"}  # what honest clients hold at p %


@method("southwest", "edge_cases")
class Southwest(EdgeCases):
    """Photographs of Southwest Airlines planes, each in four rotations: 780 to train on and 196 to test on.

    For CIFAR-10. southwest.npz lies in edge-case of the data folder.

    Args:
        target: the label that the attacker wants; 9 is a truck.
    Source: Wang et al., Attack of the Tails: Yes, You Really Can Backdoor Federated Learning, 2020, arXiv:2007.05084,
        task 1. Differs: 784 are published, of which the four rotations of one photograph are in the test part, too;
        these are left out of the training part.
    """

    target: int = TRUCK

    def read(self, data: Dataset) -> EdgeSet:
        train, test = planes("southwest", "southwest.npz", "train", "test")
        photos = torch.tensor(numbered(train))
        kept = ~among(train, test)
        require(bool(kept.any()), "southwest: every training photograph is in the test part, too; fetch the file again")
        x, test_x = (fitted("southwest", images, data) for images in (train[kept], test))
        return airplanes("southwest", x, test_x, self.target, origins=photos[kept])


@method("southwest_honest", "edge_cases")
class SouthwestHonest(EdgeCases):
    """The published split of Southwest planes among the attacker (100 images) and honest clients (0, 100 or 700).

    The split mixes photographs of both published parts, so the test part is what none of its hands holds in any
    rotation: 32 images, the same at every p. `split_edge_cases(southwest())` keeps all 196. southwest.npz and
    southwest_honest.npz lie in edge-case of the data folder.

    Args:
        p: share of the edge-case examples that the attacker holds, in percent, as in figure 8.3. At 10 honest clients
            hold 700 images, 696 of them different, which makes it 12.5.
        target: the label that the attacker wants; 9 is a truck.
    Source: as `southwest`, figure 8.3. Differs: there the test part shares photographs with the hands.
    """

    p: Literal[100, 50, 10] = 50
    target: int = TRUCK

    def read(self, data: Dataset) -> EdgeSet:
        hands = ("adversary", "almost_edge", "normal")
        split = dict(zip(hands, planes("southwest_honest", "southwest_honest.npz", *hands), strict=True))
        (test,) = planes("southwest_honest", "southwest.npz", "test")
        test = test[~among(test, torch.cat([split[hand] for hand in hands]))]
        require(len(test) > 0, "southwest_honest: its hands hold every test photograph; fetch the files again")
        train = split["adversary"]
        x, test_x = (fitted("southwest_honest", images, data) for images in (train, test))
        held = HELD[self.p]
        honest = None if held is None else fitted("southwest_honest", split[held], data)
        return airplanes(
            "southwest_honest", x, test_x, self.target, origins=torch.tensor(numbered(train)), honest=honest
        )


def airplanes(
    name: str, x: Tensor, test_x: Tensor, target: int, origins: Tensor, honest: Tensor | None = None
) -> EdgeSet:
    """Images that are all aeroplanes."""
    y, test_y = (torch.full((len(images),), AIRPLANE) for images in (x, test_x))
    held = None if honest is None else (honest, torch.full((len(honest),), AIRPLANE))
    return EdgeSet(
        name=name, train_x=x, true_y=y, target=target, test_x=test_x, test_true=test_y, held=held, origins=origins
    )


def planes(name: str, file: str, *parts: str) -> list[Tensor]:
    """Parts of a published file. Shapes: each (n, 3, 32, 32) uint8."""
    parts_of_file = arrays(name, file, *parts)
    for part, images in zip(parts, parts_of_file, strict=True):
        check_bytes(f"{name}: {part} in {file}", images, 32, 32, 3)
    return [images.permute(0, 3, 1, 2).contiguous() for images in parts_of_file]


def photographs(images: Tensor) -> list[bytes]:
    """The same image for all four rotations of a picture: the first of them in the order of their bytes."""
    turned = [images.rot90(k, (2, 3)).contiguous().numpy() for k in range(4)]
    return [min(part[i].tobytes() for part in turned) for i in range(len(images))]


def numbered(images: Tensor) -> list[int]:
    """Numbers the photographs, and gives the number of each image."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(photo, len(numbers)) for photo in photographs(images)]


def among(images: Tensor, others: Tensor) -> Tensor:
    """Whether each image is one of the others in any rotation. Shapes: (n, C, S, S), (m, C, S, S) -> (n,)."""
    known = set(photographs(others))
    return torch.tensor([photo in known for photo in photographs(images)], dtype=torch.bool)

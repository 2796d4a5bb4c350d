# SPDX-License-Identifier: Apache-2.0
"""Made-up data for tests of edge cases."""

import torch

import phalanx as px
from phalanx.data.shape import UNSCORED


def images(*shape: int, seed: int = 0, levels: int = 255) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels + 1, shape, generator=generator).to(torch.uint8)


def toy(count: int = 40, c: int = 1, side: int = 6, levels: int = 255, owners: bool = False) -> px.data.Dataset:
    """Images of four classes in turn, all different."""
    x, y = images(count, c, side, side, levels=levels), torch.arange(count) % 4
    test_x = images(12, c, side, side, seed=1, levels=levels)
    who = torch.arange(count) % 3 if owners else None
    mean = (0.5,) * c
    return px.data.Dataset("toy", x, y, test_x, torch.arange(12) % 4, 10, mean, mean, levels, owners=who)


def texts(words: tuple[str, ...] = (), passages: bool = False, length: int = 8) -> px.data.Dataset:
    vocabulary = len(words) or 20
    x = torch.arange(30 * length).reshape(30, length) % vocabulary
    y = torch.arange(30) % 2
    if passages:
        y = x.roll(-1, 1).clone()
        y[:, :2] = UNSCORED
    return px.data.Dataset("toy", x, y, x[:9], y[:9], vocabulary, vocabulary=vocabulary, words=words)


def keys(x: torch.Tensor) -> list[bytes]:
    return [row.contiguous().numpy().tobytes() for row in x]


def assert_same(a: px.backdoors.EdgeSet, b: px.backdoors.EdgeSet) -> None:
    for name in ("train_x", "train_y", "true_y", "test_x", "test_true", "attacked"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name

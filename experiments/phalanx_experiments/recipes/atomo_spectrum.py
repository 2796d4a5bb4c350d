# SPDX-License-Identifier: Apache-2.0
"""The singular values of a layer's gradient during training: figure 1.1."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.training.phase import Run
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.spectrum import plot_spectrum, spectrum_tables


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        layer: whose gradient is looked at; the paper names none.
        every: rounds between two looks.
    """

    data: Data
    model: Model
    layer: str
    augment: Augment | None
    batch: int
    rounds: int
    every: int


SIZES = {
    "smoke": Size(px.cifar10(train=2000, test=500, size=16), px.cnn(channels=(8, 16)), "4.weight", None, 64, 5, 2),
    "laptop": Size(px.cifar10(test=2000, size=16), px.cnn(), "8.weight", px.crop_flip(pad=1), 256, 401, 80),
    # data passes 0, 5, 10, ... as in the figure, at 391 steps a pass
    "paper": Size(px.cifar10(), px.resnet18(), "7.conv2.weight", px.crop_flip(), 128, 7821, 1955),
}


@recipe("atomo-spectrum", plot=plot_spectrum, tables=spectrum_tables)
def atomo_spectrum(scale: str) -> dict[str, Run]:
    """Singular values of a convolution's gradient while a network learns CIFAR-10, for two reshapes."""
    size = SIZES[scale]
    phase = px.phase(
        work=px.gradient(batch=size.batch),
        scheme=px.chain(px.reduce(px.dense())),
        finish=px.sgd(lr=0.125),
        rounds=size.rounds,
    )
    looks = tuple(px.spectrum(layer=size.layer, reshape=r, every=size.every) for r in ("paper", "matrix"))
    return {
        "SGD": px.run(
            data=size.data,
            model=size.model,
            phases=(phase,),
            workers=4,
            augment=size.augment,
            evaluate_every=size.every,
            observers=looks,
        )
    }

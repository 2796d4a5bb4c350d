# SPDX-License-Identifier: Apache-2.0
"""The singular values of a layer's gradient during training: figure 1.1."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
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
    "smoke": Size(
        px.data.cifar10(train=2000, test=500, size=16), px.models.cnn(channels=(8, 16)), "4.weight", None, 64, 5, 2
    ),
    "laptop": Size(
        px.data.cifar10(test=2000, size=16), px.models.cnn(), "8.weight", px.data.crop_flip(pad=1), 256, 401, 80
    ),
    # data passes 0, 5, 10, ... as in the figure, at 391 steps a pass
    "paper": Size(px.data.cifar10(), px.models.resnet18(), "7.conv2.weight", px.data.crop_flip(), 128, 7821, 1955),
}


@recipe("atomo-spectrum", plot=plot_spectrum, tables=spectrum_tables)
def atomo_spectrum(scale: str) -> dict[str, Run]:
    """Singular values of a convolution's gradient while a network learns CIFAR-10, for two reshapes."""
    size = SIZES[scale]
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=px.chain(px.reduce(px.codecs.dense())),
        optimizer=px.optim.sgd(lr=0.125),
        rounds=size.rounds,
    )
    looks = tuple(px.training.spectrum(layer=size.layer, reshape=r, every=size.every) for r in ("paper", "matrix"))
    return {
        "SGD": px.Run(
            data=size.data,
            model=size.model,
            phases=(phase,),
            workers=4,
            augment=size.augment,
            evaluate_every=size.every,
            observers=looks,
        )
    }

# SPDX-License-Identifier: Apache-2.0
"""The singular values of a layer's gradient during training: figure 1.1."""

from __future__ import annotations

import phalanx as px
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.spectrum import plot_spectrum, spectrum_tables
from phalanx_experiments.recipes.size import Size

SIZES = {
    "smoke": Size(
        data=px.data.cifar10(train=2000, test=500, size=16),
        model=px.models.cnn(channels=(8, 16)),
        batch=64,
        optimizer=px.optim.sgd(lr=0.125),
        rounds=5,
        evaluate_every=2,
        workers=4,
    ),
    "laptop": Size(
        data=px.data.cifar10(test=2000, size=16),
        model=px.models.cnn(),
        augment=px.data.crop_flip(pad=1),
        batch=256,
        optimizer=px.optim.sgd(lr=0.125),
        rounds=401,
        evaluate_every=80,
        workers=4,
    ),
    # data passes 0, 5, 10, ... as in the figure, at 391 steps a pass
    "paper": Size(
        data=px.data.cifar10(),
        model=px.models.resnet18(),
        augment=px.data.crop_flip(),
        batch=128,
        optimizer=px.optim.sgd(lr=0.125),
        rounds=7821,
        evaluate_every=1955,
        workers=4,
    ),
}
# the layer whose gradient is measured; the paper names none
LAYERS = {"smoke": "4.weight", "laptop": "8.weight", "paper": "7.conv2.weight"}


@recipe("atomo-spectrum", plot=plot_spectrum, tables=spectrum_tables)
def atomo_spectrum(scale: str) -> dict[str, Run]:
    """Singular values of a convolution's gradient while a network learns CIFAR-10, for two reshapes."""
    size, layer = SIZES[scale], LAYERS[scale]
    observers = tuple(
        px.training.spectrum(layer=layer, reshape=reshape, every=size.evaluate_every) for reshape in ("paper", "matrix")
    )
    return {"SGD": size.run(px.chain(px.reduce(px.codecs.dense())), observers=observers)}

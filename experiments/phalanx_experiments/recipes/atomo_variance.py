# SPDX-License-Identifier: Apache-2.0
"""Entries or singular values: table 3.1 and theorem 3.8 on the gradients of real trainings."""

from __future__ import annotations

import phalanx as px
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.variance import plot_variance, variance_tables
from phalanx_experiments.recipes.size import Size, with_models

# the first worker's gradient is measured, whenever the run is tested
SIZES = {
    "smoke": {
        "CNN": Size(
            data=px.data.cifar10(train=2000, test=500, size=16),
            model=px.models.cnn(channels=(8, 16)),
            batch=64,
            optimizer=px.optim.sgd(lr=0.125),
            rounds=5,
            evaluate_every=2,
            workers=4,
        )
    },
    "laptop": {
        "CNN": Size(
            data=px.data.cifar10(test=2000, size=16),
            model=px.models.cnn(),
            augment=px.data.crop_flip(pad=1),
            batch=256,
            optimizer=px.optim.sgd(lr=0.125),
            rounds=401,
            evaluate_every=80,
            workers=4,
        )
    },
    "paper": with_models(
        Size(
            data=px.data.cifar10(),
            model=px.models.resnet18(),
            augment=px.data.crop_flip(),
            batch=128,
            optimizer=px.optim.sgd(lr=0.125),
            rounds=8001,
            evaluate_every=1000,
            workers=4,
        ),
        {"ResNet-18": px.models.resnet18(), "VGG-11-BN": px.models.vgg11_bn()},
    ),
}
DRAWS = {"smoke": 4, "laptop": 20, "paper": 20}  # encodings of each gradient


@recipe("atomo-variance", plot=plot_variance, tables=variance_tables)
def atomo_variance(scale: str) -> dict[str, Run]:
    """Second moments of entrywise and spectral ATOMO at equal bytes on CIFAR-10 gradients, against the theory."""
    runs: dict[str, Run] = {}
    for name, size in SIZES[scale].items():
        observer = px.training.variance(every=size.evaluate_every, draws=DRAWS[scale])
        runs[name] = size.run(px.chain(px.reduce(px.codecs.dense())), observers=(observer,))
    return runs

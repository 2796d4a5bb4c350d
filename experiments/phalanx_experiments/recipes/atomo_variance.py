# SPDX-License-Identifier: Apache-2.0
"""Entries or singular values: table 3.1 and theorem 3.8 on the gradients of real trainings."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.variance import plot_variance, variance_tables


@dataclass(frozen=True)
class Training:
    """What is looked at.

    Args:
        batch: examples a round over all workers; the first worker's gradient is looked at.
        every: rounds between two looks.
    """

    data: Data
    model: Model
    augment: Augment | None
    batch: int
    rounds: int
    every: int
    draws: int = 20


SMALL, WHOLE = px.data.cifar10(test=2000, size=16), px.data.cifar10()
TRAININGS = {
    "smoke": {
        "CNN": Training(
            px.data.cifar10(train=2000, test=500, size=16),
            px.models.cnn(channels=(8, 16)),
            None,
            64,
            rounds=5,
            every=2,
            draws=4,
        )
    },
    "laptop": {"CNN": Training(SMALL, px.models.cnn(), px.data.crop_flip(pad=1), 256, rounds=401, every=80)},
    "paper": {
        "ResNet-18": Training(WHOLE, px.models.resnet18(), px.data.crop_flip(), 128, rounds=8001, every=1000),
        "VGG-11-BN": Training(WHOLE, px.models.vgg11_bn(), px.data.crop_flip(), 128, rounds=8001, every=1000),
    },
}


@recipe("atomo-variance", plot=plot_variance, tables=variance_tables)
def atomo_variance(scale: str) -> dict[str, Run]:
    """Second moments of entrywise and spectral ATOMO at equal bytes on CIFAR-10 gradients, against the theory."""

    def watched(training: Training) -> Run:
        phase = px.Phase(
            work=px.training.gradient(batch=training.batch),
            scheme=px.chain(px.reduce(px.codecs.dense())),
            optimizer=px.optim.sgd(lr=0.125),
            rounds=training.rounds,
        )
        return px.Run(
            data=training.data,
            model=training.model,
            phases=(phase,),
            workers=4,
            augment=training.augment,
            evaluate_every=training.every,
            observers=(px.training.variance(every=training.every, draws=training.draws),),
        )

    return {label: watched(training) for label, training in TRAININGS[scale].items()}

# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH on several machines, beside and under gradient compression: figures 4.4, 4.5, 4.7 and 4.8."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import Schedule
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables
from phalanx_experiments.recipes.single import single


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        batch: images a round over all workers.
        lr: of all methods but Signum, whose steps are all of one length.
        warmup: share of the rounds at full rank.
    """

    data: Data
    model: Model
    batch: int
    lr: float
    sign_lr: float
    schedule: Schedule
    rounds: int
    evaluate_every: int
    warmup: float
    workers: int
    augment: Augment | None = None
    weight_decay: float = 1e-4
    precision: str = "float32"


SIZES = {
    "smoke": Size(
        px.data.cifar10(train=600, test=200, size=16),
        px.models.resnet(widths=(8, 16)),
        60,
        0.1,
        1e-3,
        px.optim.cosine(),
        8,
        4,
        0.25,
        workers=3,
    ),
    "laptop": Size(
        px.data.cifar10(train=16_000, size=16),
        px.models.resnet(),
        128,
        0.2,
        5e-4,
        px.optim.cosine(warmup=30),
        500,
        100,
        0.25,
        workers=4,
        augment=px.data.crop_flip(pad=1),
        weight_decay=5e-4,
        precision="bf16",
    ),
    # section 4.4.2: 8 nodes of 256 images, the step warmed up over 5 epochs of 24 rounds, 80 of 300 at full rank
    "paper": Size(
        px.data.cifar10(),
        px.models.resnet18(),
        2048,
        1.6,
        5e-4,
        px.optim.cosine(warmup=5 * 24),
        300 * 24,
        24,
        80 / 300,
        workers=8,
        augment=px.data.crop_flip(),
    ),
}


@recipe("pufferfish-distributed", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_distributed(scale: str) -> dict[str, Run]:
    """Figures 4.4, 4.5, 4.7 and 4.8: SGD, PUFFERFISH, PowerSGD, both, Signum and stochastic binary quantization."""
    size = SIZES[scale]
    plain, low = px.chain(px.reduce(px.codecs.dense())), pufferfish(size)
    binary = px.chain(px.gather(px.codecs.stochastic_binary()), px.aggregators.mean())
    return {
        "SGD": configured(size, plain, None),
        "PUFFERFISH": configured(size, plain, low),
        # both weights and gradients are approximated, which wants a higher rank (section 4.5.6)
        "PUFFERFISH + PowerSGD rank 4": configured(size, px.chain(px.lowrank.power_sgd(rank=4)), low),
        "PowerSGD rank 2": configured(size, px.chain(px.lowrank.power_sgd(rank=2)), None),
        "Signum": configured(size, px.codecs.signum(), None, signs=True),
        "stochastic binary": configured(size, binary, None),
    }


def pufferfish(size: Size) -> Surgery:
    """The hybrid of a residual network: stem, first block and shortcuts stay full."""
    return px.lowrank.pufferfish(warmup=size.warmup, first=4, keep=("*.shortcut.*",))


def configured(size: Size, scheme: Stage, surgery: Surgery | None, signs: bool = False) -> Run:
    """One run."""
    momentum = 0.0 if signs else 0.9
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=scheme,
        optimizer=px.optim.sgd(
            size.sign_lr if signs else size.lr,
            momentum=momentum,
            weight_decay=size.weight_decay,
            schedule=size.schedule,
        ),
        rounds=size.rounds,
        surgery=surgery,
    )
    return single(size, size.model, phase)

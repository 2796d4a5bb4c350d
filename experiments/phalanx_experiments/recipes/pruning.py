# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH against pruning: figure 4.6 and table 4.7."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import phalanx as px
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.pruning import lottery_tables, plot_lottery, plot_slim, slim_tables


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        models: by the name of their panel, with the first low-rank layer of their hybrid; a single one needs no name.
        rounds: of one training.
        cycles: trainings of a lottery; it prunes between them.
        rewinds: the rounds to which lotteries go back.
        look: rounds between two looks at an early-bird ticket.
    """

    data: Data
    models: dict[str, tuple[Model, int]]
    rounds: int
    cycles: int
    rewinds: tuple[int, ...]
    look: int
    evaluate_every: int
    warmup: float = 0.25
    batch: int = 128
    augment: Augment | None = None
    precision: Literal["float32", "bf16"] = "float32"
    ratios: tuple[float, ...] = field(default=(0.3, 0.5, 0.7))  # table 4.7


SIZES = {
    "smoke": Size(px.data.digits(), {"": (px.models.cnn(channels=(8, 16, 32)), 2)}, 12, 3, (0,), 1, 3, batch=64),
    "laptop": Size(
        px.data.cifar10(test=2000, size=16),
        # a small VGG, of which the hybrid has 38 % and a lottery 36 % after five prunings
        {"": (px.models.cnn(channels=(16, 32, 64, 128)), 3)},
        rounds=300,
        cycles=6,
        rewinds=(0, 50),
        look=10,
        evaluate_every=50,
        augment=px.data.crop_flip(pad=1),
        precision="bf16",
    ),
    # 300 epochs of 391 batches, tables 4.9 and 4.18
    "paper": Size(
        px.data.cifar10(),
        {"VGG-19-BN": (px.models.vgg19_bn(bias=False, hidden=()), 10), "ResNet-50": (px.models.resnet50(), 44)},
        rounds=117_300,
        cycles=6,
        rewinds=(0,),
        look=391,
        evaluate_every=391,
        warmup=80 / 300,
        augment=px.data.crop_flip(),
    ),
}


def configured(size: Size, model: Model, rounds: int, surgery: Surgery | None = None) -> Run:
    """One run; the schedule is that of section 4.5.2, a tenth of the step at epochs 150 and 250 of 300."""
    schedule = px.optim.milestones(at=(1 / 2, 5 / 6), by=0.1)
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=px.chain(px.reduce(px.codecs.dense())),
        optimizer=px.optim.sgd(lr=0.1, momentum=0.9, weight_decay=0.0001, schedule=schedule),
        rounds=rounds,
        surgery=surgery,
    )
    return px.Run(
        data=size.data,
        model=model,
        phases=(phase,),
        workers=1,
        augment=size.augment,
        precision=size.precision,
        evaluate_every=size.evaluate_every,
    )


def references(size: Size, model: Model, first: int) -> dict[str, Run]:
    """The whole network, and its hybrid of rank ratio 1/4."""
    hybrid = px.lowrank.pufferfish(first=first, warmup=size.warmup)
    return {
        "full": configured(size, model, size.rounds),
        "pufferfish 1/4": configured(size, model, size.rounds, hybrid),
    }


@recipe("pufferfish-vs-lth", plot=plot_lottery, tables=lottery_tables)
def pufferfish_vs_lth(scale: str) -> dict[str, Run]:
    """Figure 4.6: how long lottery tickets take to be as small as PUFFERFISH's network, and their accuracy."""
    size = SIZES[scale]
    model, first = next(iter(size.models.values()))
    made = references(size, model, first)
    for rewind in size.rewinds:
        rounds = size.rounds + (size.cycles - 1) * (size.rounds - rewind)
        label = f"lottery, rewound to {rewind}" if rewind else "lottery"
        made[label] = configured(size, model, rounds, px.lowrank.lottery(every=size.rounds, rewind=rewind))
    return made


@recipe("pufferfish-vs-ebtrain", plot=plot_slim, tables=slim_tables)
def pufferfish_vs_ebtrain(scale: str) -> dict[str, Run]:
    """Table 4.7 on CIFAR-10: PUFFERFISH against early-bird channel pruning of 30, 50 and 70 %."""
    size, made = SIZES[scale], dict[str, Run]()
    for name, (model, first) in size.models.items():
        head = f"{name}: " if name else ""
        made |= {f"{head}{label}": run for label, run in references(size, model, first).items()}
        for ratio in size.ratios:
            surgery = px.lowrank.early_bird(ratio=ratio, every=size.look)
            made[f"{head}early bird {round(100 * ratio)} %"] = configured(size, model, size.rounds, surgery)
    return made

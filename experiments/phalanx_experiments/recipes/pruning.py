# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH against pruning: figure 4.6 and table 4.7."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.pruning import lottery_tables, plot_lottery, plot_slim, slim_tables
from phalanx_experiments.recipes.size import Size, in_panel

RATIOS = (0.3, 0.5, 0.7)  # table 4.7


@dataclass(frozen=True)
class Setting:
    """One training, its hybrid, and how often each method prunes.

    Args:
        first: number of the hybrid's first low-rank layer.
        cycles: trainings of a lottery; it prunes between them.
        rewinds: the rounds to which lotteries go back.
        every: rounds between two masks of an early-bird ticket.
        warmup: share of the rounds at full rank.
    """

    size: Size
    first: int
    cycles: int
    rewinds: tuple[int, ...]
    every: int
    warmup: float = 0.25


def optimizer() -> ServerOptimizer:
    """The optimizer of section 4.5.9, with a tenth of the step from epochs 150 and 250 of 300."""
    schedule = px.optim.milestones(at=(1 / 2, 5 / 6), by=0.1)
    return px.optim.sgd(lr=0.1, momentum=0.9, weight_decay=0.0001, schedule=schedule)


# 300 epochs of 391 batches, tables 4.9 and 4.18
_PAPER = Setting(
    Size(
        data=px.data.cifar10(),
        model=px.models.vgg19_bn(bias=False, hidden=()),
        augment=px.data.crop_flip(),
        batch=128,
        optimizer=optimizer(),
        rounds=117_300,
        evaluate_every=391,
    ),
    first=10,
    cycles=6,
    rewinds=(0,),
    every=391,
    warmup=80 / 300,
)
# by the name of the panel; a single panel needs no name
SETTINGS = {
    "smoke": {
        "": Setting(
            Size(
                data=px.data.digits(),
                model=px.models.cnn(channels=(8, 16, 32)),
                batch=64,
                optimizer=optimizer(),
                rounds=12,
                evaluate_every=3,
            ),
            first=2,
            cycles=3,
            rewinds=(0,),
            every=1,
        )
    },
    "laptop": {
        "": Setting(
            Size(
                data=px.data.cifar10(test=2000, size=16),
                # a small VGG, of which the hybrid has 38 % and a lottery 36 % after five prunings
                model=px.models.cnn(channels=(16, 32, 64, 128)),
                augment=px.data.crop_flip(pad=1),
                batch=128,
                optimizer=optimizer(),
                rounds=300,
                evaluate_every=50,
                precision="bf16",
            ),
            first=3,
            cycles=6,
            rewinds=(0, 50),
            every=10,
        )
    },
    "paper": {
        "VGG-19-BN": _PAPER,
        "ResNet-50": replace(_PAPER, size=replace(_PAPER.size, model=px.models.resnet50()), first=44),
    },
}
PLAIN = px.chain(px.reduce(px.codecs.dense()))


def references(setting: Setting) -> dict[str, Run]:
    """The whole network, and its hybrid of rank ratio 1/4."""
    hybrid = px.lowrank.pufferfish(first=setting.first, warmup=setting.warmup)
    return {"full": setting.size.run(PLAIN), "pufferfish 1/4": setting.size.run(PLAIN, hybrid)}


@recipe("pufferfish-vs-lth", plot=plot_lottery, tables=lottery_tables)
def pufferfish_vs_lth(scale: str) -> dict[str, Run]:
    """Figure 4.6: how long lottery tickets take to be as small as PUFFERFISH's network, and their accuracy."""
    setting = next(iter(SETTINGS[scale].values()))
    size, runs = setting.size, references(setting)
    for rewind in setting.rewinds:
        rounds = size.rounds + (setting.cycles - 1) * (size.rounds - rewind)
        label = f"lottery, rewound to {rewind}" if rewind else "lottery"
        lottery = px.lowrank.lottery(every=size.rounds, rewind=rewind)
        runs[label] = replace(size, rounds=rounds).run(PLAIN, lottery)
    return runs


@recipe("pufferfish-vs-ebtrain", plot=plot_slim, tables=slim_tables)
def pufferfish_vs_ebtrain(scale: str) -> dict[str, Run]:
    """Table 4.7 on CIFAR-10: PUFFERFISH against early-bird channel pruning of 30, 50 and 70 %."""
    runs: dict[str, Run] = {}
    for panel, setting in SETTINGS[scale].items():
        runs |= {in_panel(panel, label): run for label, run in references(setting).items()}
        for ratio in RATIOS:
            early_bird = px.lowrank.early_bird(ratio=ratio, every=setting.every)
            label = f"early bird {round(100 * ratio)} %"
            runs[in_panel(panel, label)] = setting.size.run(PLAIN, early_bird)
    return runs

# SPDX-License-Identifier: Apache-2.0
"""The gain from hybrids and from warm-up, each beside its control: tables 4.4, 4.8 and 4.23, figures 4.2 and 4.3."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.core.surgery import Surgery
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables
from phalanx_experiments.recipes.size import Size, in_panel


@dataclass(frozen=True)
class Setting:
    """The training of a network, and where its hybrid begins.

    Args:
        first: number of the hybrid's first low-rank layer.
        all_but: number of the first low-rank layer of the network that is low-rank almost everywhere.
        keep: layers that stay full in both.
        budget: ratio whose parameters, of all layers, are at most those of the hybrid.
        warmup: share of the rounds at full rank.
    """

    size: Size
    first: int
    all_but: int = 2
    keep: tuple[str, ...] = ()
    budget: float = 0.25
    warmup: float = 0.25

    def surgery(self, ratio: float, warmup: float, hybrid: bool = True, **more: str) -> Surgery:
        """PUFFERFISH on this network."""
        first = self.first if hybrid else self.all_but
        return px.lowrank.pufferfish(ratio=ratio, warmup=warmup, first=first, keep=self.keep, **more)  # type: ignore[arg-type]


# tables 4.9 and 4.11 to 4.13: 300 epochs of 391 rounds, 80 of them at full rank
_RESNET18 = Size(
    data=px.data.cifar10(),
    model=px.models.resnet18(),
    augment=px.data.crop_flip(),
    batch=128,
    optimizer=px.optim.sgd(0.1, momentum=0.9, weight_decay=1e-4, schedule=px.optim.milestones(at=(0.5, 5 / 6))),
    rounds=300 * 391,
    evaluate_every=391,
)
_VGG19 = replace(_RESNET18, model=px.models.vgg19_bn(dropout=0.5, bias=False))
# by the name of the panel; a single panel needs no name
SETTINGS = {
    "smoke": {
        "": Setting(
            Size(
                data=px.data.cifar10(train=600, test=200, size=16),
                model=px.models.resnet(widths=(8, 16)),
                batch=60,
                optimizer=px.optim.sgd(0.1, momentum=0.9),
                rounds=8,
                evaluate_every=4,
            ),
            first=4,
            keep=("*.shortcut.*",),
        )
    },
    "laptop": {
        "": Setting(
            Size(
                data=px.data.cifar10(train=16_000, size=16),
                model=px.models.resnet(),
                augment=px.data.crop_flip(pad=1),
                batch=128,
                optimizer=px.optim.sgd(0.2, momentum=0.9, weight_decay=5e-4, schedule=px.optim.cosine(warmup=30)),
                rounds=750,
                evaluate_every=125,
                precision="bf16",
            ),
            first=4,
            keep=("*.shortcut.*",),
            budget=0.3,
        )
    },
    "paper": {
        "ResNet-18": Setting(_RESNET18, first=4, keep=("*.shortcut.*",), warmup=80 / 300),
        "VGG-19": Setting(_VGG19, first=10, warmup=80 / 300),
    },
}


def variants(setting: Setting) -> dict[str, Surgery | None]:
    """The variants that are compared; from scratch factorizes the first weights, the control of any warm-up."""
    quarter, half, warmup = 1 / 4, 1 / 2, setting.warmup
    return {
        "full": None,
        "hybrid, warm-up": setting.surgery(quarter, warmup),
        "hybrid, warm-up, fresh optimizer": setting.surgery(quarter, warmup, moments="fresh"),
        "hybrid, warm-up, ranks 1/2": setting.surgery(half, warmup),
        # K, ranks and the end of the warm-up by themselves, within fewer parameters than the hybrid has
        "chosen by itself": px.lowrank.pufferfish(ratio=setting.budget, rank="auto", warmup="auto"),
        "hybrid from scratch": setting.surgery(quarter, 0.0),
        "hybrid from scratch, drawn factors": setting.surgery(quarter, 0.0, start="drawn"),
        "low rank, warm-up": setting.surgery(quarter, warmup, hybrid=False),
        "low rank from scratch": setting.surgery(quarter, 0.0, hybrid=False),
        "low rank from scratch, drawn factors": setting.surgery(quarter, 0.0, hybrid=False, start="drawn"),
    }


@recipe("pufferfish-cifar", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_cifar(scale: str) -> dict[str, Run]:
    """Tables 4.4, 4.8 and 4.23: CIFAR-10 at full rank, as hybrid and low-rank, with and without warm-up."""
    plain, runs = px.chain(px.reduce(px.codecs.dense())), dict[str, Run]()
    for panel, setting in SETTINGS[scale].items():
        size = setting.size
        for label, surgery in variants(setting).items():
            run = size.run(plain, surgery, checkpoint_every=size.evaluate_every)
            runs[in_panel(panel, label)] = run
    return runs

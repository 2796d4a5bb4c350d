# SPDX-License-Identifier: Apache-2.0
"""What hybrids and warm-up are worth, each beside its control: tables 4.4, 4.8 and 4.23, figures 4.2 and 4.3."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables
from phalanx_experiments.recipes.single import single


@dataclass(frozen=True)
class Net:
    """A network and where its hybrid begins.

    Args:
        first: number of the hybrid's first low-rank layer.
        all_but: number of the first low-rank layer of the network that is low-rank almost everywhere.
        keep: layers that stay full in both.
        budget: ratio whose parameters, of all layers, are at most those of the hybrid.
    """

    model: Model
    first: int
    all_but: int = 2
    keep: tuple[str, ...] = ()
    budget: float = 0.25

    def surgery(self, ratio: float, warmup: float, hybrid: bool = True, **more: str) -> Surgery:
        """PUFFERFISH on this network."""
        first = self.first if hybrid else self.all_but
        return px.lowrank.pufferfish(ratio=ratio, warmup=warmup, first=first, keep=self.keep, **more)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        nets: by the name of their panel; a single one needs none.
        warmup: share of the rounds at full rank.
    """

    data: Data
    nets: dict[str, Net]
    batch: int
    optimizer: ServerOptimizer
    rounds: int
    evaluate_every: int
    warmup: float = 0.25
    workers: int = 1
    augment: Augment | None = None
    precision: str = "float32"


RESNET = Net(px.models.resnet(), first=4, keep=("*.shortcut.*",), budget=0.3)
SIZES = {
    "smoke": Size(
        px.data.cifar10(train=600, test=200, size=16),
        {"": Net(px.models.resnet(widths=(8, 16)), first=4, keep=("*.shortcut.*",))},
        60,
        px.optim.sgd(0.1, momentum=0.9),
        8,
        4,
    ),
    "laptop": Size(
        px.data.cifar10(train=16_000, size=16),
        {"": RESNET},
        128,
        px.optim.sgd(0.2, momentum=0.9, weight_decay=5e-4, schedule=px.optim.cosine(warmup=30)),
        750,
        125,
        augment=px.data.crop_flip(pad=1),
        precision="bf16",
    ),
    # tables 4.9 and 4.11 to 4.13: 300 epochs of 391 rounds, 80 of them at full rank
    "paper": Size(
        px.data.cifar10(),
        {
            "ResNet-18": Net(px.models.resnet18(), first=4, keep=("*.shortcut.*",)),
            "VGG-19": Net(px.models.vgg19_bn(dropout=0.5, bias=False), first=10),
        },
        128,
        px.optim.sgd(0.1, momentum=0.9, weight_decay=1e-4, schedule=px.optim.milestones(at=(0.5, 5 / 6))),
        300 * 391,
        391,
        warmup=80 / 300,
        augment=px.data.crop_flip(),
    ),
}


def variants(net: Net, warmup: float) -> dict[str, Surgery | None]:
    """What is compared. From scratch means the spectrum of the first weights, which is the control of any warm-up."""
    quarter, half = 1 / 4, 1 / 2
    return {
        "full": None,
        "hybrid, warm-up": net.surgery(quarter, warmup),
        "hybrid, warm-up, fresh optimizer": net.surgery(quarter, warmup, moments="fresh"),
        "hybrid, warm-up, ranks 1/2": net.surgery(half, warmup),
        # K, ranks and the end of the warm-up by themselves, within fewer parameters than the hybrid has
        "chosen by itself": px.lowrank.pufferfish(ratio=net.budget, rank="auto", warmup="auto"),
        "hybrid from scratch": net.surgery(quarter, 0.0),
        "hybrid from scratch, drawn factors": net.surgery(quarter, 0.0, start="drawn"),
        "low rank, warm-up": net.surgery(quarter, warmup, hybrid=False),
        "low rank from scratch": net.surgery(quarter, 0.0, hybrid=False),
        "low rank from scratch, drawn factors": net.surgery(quarter, 0.0, hybrid=False, start="drawn"),
    }


def configured(size: Size, net: Net, surgery: Surgery | None) -> Run:
    """One run."""
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=px.chain(px.reduce(px.codecs.dense())),
        optimizer=size.optimizer,
        rounds=size.rounds,
        surgery=surgery,
    )
    return single(size, net.model, phase)


@recipe("pufferfish-cifar", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_cifar(scale: str) -> dict[str, Run]:
    """Tables 4.4, 4.8 and 4.23: CIFAR-10 at full rank, as hybrid and low-rank, with and without warm-up."""
    size = SIZES[scale]
    return {
        f"{name}: {label}" if name else label: configured(size, net, surgery)
        for name, net in size.nets.items()
        for label, surgery in variants(net, size.warmup).items()
    }

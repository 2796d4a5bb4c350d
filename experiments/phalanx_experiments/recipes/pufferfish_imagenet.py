# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH on ImageNet: tables 4.5 and 4.22, figures 4.2 b and 4.3 b."""

from __future__ import annotations

import phalanx as px
from phalanx.core.surgery import Surgery
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables

EPOCH = 5005  # rounds of 256 images
KEPT = ("0", "[4-9].*", "1[0-6].*")  # all before conv5_x


def hybrid(warmup: float, **more: str) -> Surgery:
    """The surgery that factorizes conv5_x and its shortcut at rank 1/4."""
    return px.lowrank.pufferfish(ratio=1 / 4, warmup=warmup, keep=KEPT, **more)  # type: ignore[arg-type]


def configured(data: Data, model: Model, surgery: Surgery | None, rounds: int, batch: int = 256) -> Run:
    """One run as in section 4.5.9: 90 epochs, steps a tenth at epochs 30, 60 and 80, smoothed labels."""
    phase = px.Phase(
        work=px.training.gradient(batch=batch, smoothing=0.1),
        scheme=px.chain(px.reduce(px.codecs.dense())),
        optimizer=px.optim.sgd(
            0.1, momentum=0.9, weight_decay=1e-4, schedule=px.optim.milestones(at=(30 / 90, 60 / 90, 80 / 90), by=0.1)
        ),
        rounds=rounds,
        surgery=surgery,
    )
    return px.Run(
        data=data,
        model=model,
        phases=(phase,),
        workers=1,
        augment=px.data.resized_crop_flip(),
        evaluate_every=EPOCH,
        checkpoint_every=EPOCH,
    )


@recipe("pufferfish-imagenet", scales=("paper",), plot=plot_convergence, tables=lowrank_tables)
def pufferfish_imagenet(scale: str) -> dict[str, Run]:
    """Tables 4.5 and 4.22: ResNet-50 and WideResNet-50-2 on ImageNet, full and hybrid; needs the pictures and a GPU."""
    nets: dict[str, Model] = {
        "ResNet-50": px.models.resnet50(stem="large"),
        "WideResNet-50-2": px.models.wide_resnet50(),
    }
    surgeries: dict[str, Surgery | None] = {
        "full": None,
        "hybrid, warm-up": hybrid(10 / 90),
        "hybrid from scratch": hybrid(0.0),
        "hybrid from scratch, drawn factors": hybrid(0.0, start="drawn"),
    }
    return {
        f"{name}: {label}": configured(px.data.image_folder(), net, surgery, 90 * EPOCH)
        for name, net in nets.items()
        for label, surgery in surgeries.items()
    }

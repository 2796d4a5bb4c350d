# SPDX-License-Identifier: Apache-2.0
"""PUFFERFISH on several machines, beside and under gradient compression: figures 4.4, 4.5, 4.7 and 4.8."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.figures.lowrank import lowrank_tables
from phalanx_experiments.recipes.size import Size

SIZES = {
    "smoke": Size(
        data=px.data.cifar10(train=600, test=200, size=16),
        model=px.models.resnet(widths=(8, 16)),
        batch=60,
        optimizer=px.optim.sgd(0.1, momentum=0.9, weight_decay=1e-4, schedule=px.optim.cosine()),
        rounds=8,
        evaluate_every=4,
        workers=3,
    ),
    "laptop": Size(
        data=px.data.cifar10(train=16_000, size=16),
        model=px.models.resnet(),
        augment=px.data.crop_flip(pad=1),
        batch=128,
        optimizer=px.optim.sgd(0.2, momentum=0.9, weight_decay=5e-4, schedule=px.optim.cosine(warmup=30)),
        rounds=500,
        evaluate_every=100,
        workers=4,
        precision="bf16",
    ),
    # section 4.3.2: 8 nodes of 256 images, the step warmed up over 5 epochs of 24 rounds, 80 of 300 at full rank
    "paper": Size(
        data=px.data.cifar10(),
        model=px.models.resnet18(),
        augment=px.data.crop_flip(),
        batch=2048,
        optimizer=px.optim.sgd(1.6, momentum=0.9, weight_decay=1e-4, schedule=px.optim.cosine(warmup=5 * 24)),
        rounds=300 * 24,
        evaluate_every=24,
        workers=8,
    ),
}
# of Signum, whose steps are all of one length
BY_SIGN = {
    "smoke": px.optim.sgd(1e-3, weight_decay=1e-4, schedule=px.optim.cosine()),
    "laptop": px.optim.sgd(5e-4, weight_decay=5e-4, schedule=px.optim.cosine(warmup=30)),
    "paper": px.optim.sgd(5e-4, weight_decay=1e-4, schedule=px.optim.cosine(warmup=5 * 24)),
}
WARMUP = {"smoke": 0.25, "laptop": 0.25, "paper": 80 / 300}  # share of the rounds at full rank


@recipe("pufferfish-distributed", plot=plot_convergence, tables=lowrank_tables)
def pufferfish_distributed(scale: str) -> dict[str, Run]:
    """Figures 4.4, 4.5, 4.7 and 4.8: SGD, PUFFERFISH, PowerSGD, both, Signum and stochastic binary quantization."""
    size = SIZES[scale]
    # stem, first block and shortcuts of the residual network stay full
    low = px.lowrank.pufferfish(warmup=WARMUP[scale], first=4, keep=("*.shortcut.*",))
    by_sign = replace(size, optimizer=BY_SIGN[scale])

    def run(scheme: Stage, surgery: Surgery | None = None, size: Size = size) -> Run:
        return size.run(scheme, surgery, checkpoint_every=size.evaluate_every)

    plain = px.chain(px.reduce(px.codecs.dense()))
    return {
        "SGD": run(plain),
        "PUFFERFISH": run(plain, low),
        # both weights and gradients are approximated, which wants a higher rank (section 4.5.5)
        "PUFFERFISH + PowerSGD rank 4": run(px.chain(px.lowrank.power_sgd(rank=4)), low),
        "PowerSGD rank 2": run(px.chain(px.lowrank.power_sgd(rank=2))),
        "Signum": run(px.codecs.signum(), size=by_sign),
        "stochastic binary": run(px.chain(px.gather(px.codecs.stochastic_binary()), px.aggregators.mean())),
    }

# SPDX-License-Identifier: Apache-2.0
"""How far each code gets with how many bytes: tables 3.3 and 3.4, figure 3.2."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import phalanx as px
from phalanx.core.codec import Codec
from phalanx.core.stage import Stage
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.convergence import convergence_tables, plot_convergence
from phalanx_experiments.recipes.size import Size, in_panel, with_models


def optimizer(lr: float) -> ServerOptimizer:
    """SGD without momentum and weight decay, as in the dissertation.

    Differs: the step size falls to zero over the run. With a constant one, two tests 50 rounds apart differ by up to 10
    points, more than any two methods.
    """
    return px.optim.sgd(lr=lr, schedule=px.optim.cosine())


RATE = 0.0625  # of most methods
# by the name of the panel; a single panel needs no name
SIZES = {
    "smoke": {
        "": Size(
            data=px.data.cifar10(train=2000, test=500, size=16),
            model=px.models.cnn(channels=(8, 16)),
            augment=px.data.crop_flip(pad=1),
            batch=64,
            optimizer=optimizer(RATE),
            rounds=10,
            evaluate_every=5,
            workers=4,
        )
    },
    "laptop": {
        "": Size(
            data=px.data.cifar10(test=2000, size=16),
            # 768,042 parameters, most of them where images are small: so four workers that share two cores communicate
            # for longer than they compute, as those of the dissertation do on machines of their own
            model=px.models.cnn(channels=(32, 64, 256, 256)),
            # no image is seen more than twice: wider crops only slow it down
            augment=px.data.crop_flip(pad=1),
            batch=128,
            optimizer=optimizer(RATE),
            rounds=400,
            evaluate_every=40,
            workers=4,
            precision="bf16",
        )
    },
    # dissertation, section 3.5; the number of rounds is in no table
    "paper": with_models(
        Size(
            data=px.data.cifar10(),
            model=px.models.resnet18(),
            augment=px.data.crop_flip(),
            batch=128,
            optimizer=optimizer(RATE),
            rounds=20_000,
            evaluate_every=500,
            workers=16,
        ),
        {"ResNet-18": px.models.resnet18(), "VGG-11-BN": px.models.vgg11_bn()},
    ),
}


def spectral(
    budget: int, vectors: Codec | None = None, reshape: Literal["paper", "matrix", "square"] = "paper"
) -> Stage:
    """ATOMO, in the matrices of the dissertation unless told otherwise.

    An all-gather pads every message to the longest, so the number of atoms is kept from varying; biases and BatchNorm's
    parameters, a hundredth of all entries, travel as they are.
    """
    codec = px.codecs.atomo(
        px.codecs.spectral(reshape), budget=budget, vectors=vectors, draws="systematic", smallest=1000
    )
    return px.chain(px.gather(codec), px.aggregators.mean())


def quantized(bits: int, bucket: int | None = 512) -> Stage:
    """QSGD; at 8 bits an entropy code saves 17 % of the bytes and takes 30 times as long to decode."""
    codec = px.codecs.qsgd(bits=bits, bucket=bucket, coding="packed" if bits == 8 else "elias")
    return px.chain(px.gather(codec), px.aggregators.mean())


METHODS: dict[str, Stage] = {
    "SGD": px.chain(px.reduce(px.codecs.dense())),
    **{f"spectral s={s}": spectral(s) for s in (1, 2, 3, 4)},
    # in matrices (out, in k^2) an atom is a tenth as long
    "spectral matrix s=24": spectral(24, reshape="matrix"),
    # the largest magnitude as norm: of short vectors it leaves a third of the noise that norm 2 does; packed, since of
    # such levels few are zero
    "spectral s=8, QSGD vectors": spectral(8, vectors=px.codecs.qsgd(bits=2, norm="linf")),
    **{f"QSGD {bits} bit": quantized(bits) for bits in (1, 2, 3, 4, 8)},
    "TernGrad": px.chain(px.gather(px.codecs.terngrad(coding="elias")), px.aggregators.mean()),
    "PowerSGD rank 2": px.chain(px.lowrank.power_sgd(rank=2)),
    "Signum": px.codecs.signum(beta=0.9),
}

# the dissertation's buckets are whole layers
PUBLISHED = METHODS | {f"QSGD {bits} bit": quantized(bits, bucket=None) for bits in (1, 2, 3, 4, 8)}

# what atomo-tuning at scale laptop chose for SGD, spectral s=3 and s=8, QSGD 2 bit and TernGrad; others by likeness. At
# scale paper, where to begin
RATES: dict[str, float] = {
    **dict.fromkeys(METHODS, RATE),
    # the noisiest estimates want shorter steps
    "spectral s=1": 0.03125,
    "QSGD 1 bit": 0.03125,
    "Signum": 2**-11,
}


@recipe("atomo-convergence", plot=plot_convergence, tables=convergence_tables)
def atomo_convergence(scale: str) -> dict[str, Run]:
    """CIFAR-10 under spectral ATOMO, QSGD, TernGrad and others, step sizes tuned: accuracy by bytes and by rounds."""
    return {
        in_panel(panel, label): replace(size, optimizer=optimizer(RATES[label])).run(scheme)
        for panel, size in SIZES[scale].items()
        for label, scheme in (PUBLISHED if scale == "paper" else METHODS).items()
    }

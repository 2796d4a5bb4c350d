# SPDX-License-Identifier: Apache-2.0
"""Four systems in one chain: a factorized model, spectrally compressed, voted by digest, aggregated by DETOX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import phalanx as px
from phalanx.attacks.adversary import Threat
from phalanx.core.codec import Codec
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.training.phase import Run
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.cluster import cluster_tables
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery

R = 3


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        low: the surgery, from the ratio of its ranks to the full ones.
        batch: examples a round over all workers.
        byzantine: liars among the workers; no two in one group of the vote but where the label says so.
        groups: of votes, each averaged before the median across them.
        budget: expected atoms of a matrix.
        smallest: entries of the smallest tensor that is compressed.
    """

    data: Data
    model: Model
    augment: Augment | None
    low: Callable[[float], Surgery]
    ratio: float
    batch: int
    lr: float
    rounds: int
    evaluate_every: int
    workers: int
    byzantine: int
    groups: int
    budget: float
    smallest: int = 1000
    precision: Literal["float32", "bf16"] = "float32"


SIZES = {
    "smoke": Size(
        px.digits(),
        px.cnn(channels=(8, 16, 32)),
        None,
        partial(px.pufferfish, warmup=0.0, first=1, keep=("0",)),
        ratio=0.5,
        batch=60,
        lr=0.05,
        rounds=20,
        evaluate_every=10,
        workers=9,
        byzantine=2,
        groups=3,
        budget=2,
        smallest=100,
    ),
    "laptop": Size(
        # the network of atomo-convergence: 768,042 parameters, most of them where images are small
        px.cifar10(test=2000, size=16),
        px.cnn(channels=(32, 64, 256, 256)),
        px.crop_flip(pad=1),
        partial(px.pufferfish, warmup=0.0, first=1, keep=("0", "16")),
        ratio=0.5,
        # small shares are where ALIE hides
        batch=72,
        lr=0.02,
        rounds=300,
        evaluate_every=20,
        workers=9,
        byzantine=2,
        groups=3,
        budget=24,
        precision="bf16",
    ),
    # the cluster and the liars of section 7.4.1, the model and its hybrid of section 4.4
    "paper": Size(
        px.cifar10(),
        px.resnet18(),
        px.crop_flip(),
        px.pufferfish,
        ratio=0.25,
        batch=1440,
        lr=0.1,
        rounds=10_000,
        evaluate_every=250,
        workers=45,
        byzantine=5,
        groups=3,
        budget=24,
    ),
}


def spectral(size: Size) -> Codec:
    """Singular vectors in QSGD, of more levels than in atomo-convergence: few votes are averaged, and medians taken."""
    return px.atomo(
        px.spectral("matrix"),
        budget=size.budget,
        vectors=px.qsgd(bits=4, norm="linf"),
        draws="systematic",
        smallest=size.smallest,
    )


def configured(size: Size, scheme: Stage, byzantine: Threat, surgery: Surgery | None = None) -> Run:
    """One run; a surgery factorizes the model."""
    phase = px.phase(
        work=px.gradient(batch=size.batch),
        scheme=scheme,
        finish=px.sgd(size.lr, 0.9, schedule=px.cosine()),
        rounds=size.rounds,
        surgery=surgery,
    )
    return px.run(
        data=size.data,
        model=size.model,
        phases=(phase,),
        workers=size.workers,
        byzantine=byzantine,
        augment=size.augment,
        precision=size.precision,
        evaluate_every=size.evaluate_every,
    )


@recipe("composition", plot=plot_convergence, tables=cluster_tables)
def composition(scale: str) -> dict[str, Run]:
    """A factorized model, spectrally compressed, voted by digest, aggregated by DETOX, under ALIE: all and each."""
    size = SIZES[scale]
    low, lower = size.low(size.ratio), size.low(size.ratio / 2)
    attack, codec = px.alie(z=1.0), spectral(size)
    liars, lost = px.spread(size.byzantine), px.fixed((0, 1, *range(R, R * (size.byzantine - 1), R)))
    dense = px.gather(px.dense())
    rules = px.hierarchy(px.mean(), px.median(), groups=size.groups)
    whole = px.chain(attack, px.vote(codec, R), rules)
    free = px.chain(px.reduce(px.dense()))
    return {
        "no attack: uncompressed": configured(size, free, px.nobody()),
        "no attack: low rank": configured(size, free, px.nobody(), low),
        "no attack: spectral": configured(size, px.chain(px.gather(codec), px.mean()), px.nobody()),
        "ALIE: uncompressed": configured(size, px.chain(attack, dense, px.mean()), liars),
        "ALIE: low rank": configured(size, px.chain(attack, dense, px.mean()), liars, low),
        "ALIE: spectral": configured(size, px.chain(attack, px.gather(codec), px.mean()), liars),
        "ALIE: median": configured(size, px.chain(attack, dense, px.median()), liars),
        "ALIE: vote": configured(size, px.chain(attack, px.vote(px.dense(), R), px.mean()), liars),
        "ALIE: DETOX": configured(size, px.chain(attack, px.vote(px.dense(), R), rules), liars),
        "ALIE: all": configured(size, whole, liars, low),
        "ALIE: all, half the rank": configured(size, whole, liars, lower),
        # two liars share a group, whose vote they win
        "ALIE, a group lost: DETOX": configured(size, px.chain(attack, px.vote(px.dense(), R), rules), lost),
        "ALIE, a group lost: all": configured(size, whole, lost, low),
    }

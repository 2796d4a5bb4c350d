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
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.cluster import cluster_tables
from phalanx_experiments.figures.convergence import plot_convergence

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
        px.data.digits(),
        px.models.cnn(channels=(8, 16, 32)),
        None,
        partial(px.lowrank.pufferfish, warmup=0.0, first=1, keep=("0",)),
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
        px.data.cifar10(test=2000, size=16),
        px.models.cnn(channels=(32, 64, 256, 256)),
        px.data.crop_flip(pad=1),
        partial(px.lowrank.pufferfish, warmup=0.0, first=1, keep=("0", "16")),
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
        px.data.cifar10(),
        px.models.resnet18(),
        px.data.crop_flip(),
        px.lowrank.pufferfish,
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
    return px.codecs.atomo(
        px.codecs.spectral("matrix"),
        budget=size.budget,
        vectors=px.codecs.qsgd(bits=4, norm="linf"),
        draws="systematic",
        smallest=size.smallest,
    )


def configured(size: Size, scheme: Stage, byzantine: Threat, surgery: Surgery | None = None) -> Run:
    """One run; a surgery factorizes the model."""
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=scheme,
        optimizer=px.optim.sgd(size.lr, 0.9, schedule=px.optim.cosine()),
        rounds=size.rounds,
        surgery=surgery,
    )
    return px.Run(
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
    attack, codec = px.attacks.alie(z=1.0), spectral(size)
    liars, lost = (
        px.adversary.evenly_spaced(size.byzantine),
        px.adversary.workers((0, 1, *range(R, R * (size.byzantine - 1), R))),
    )
    dense = px.gather(px.codecs.dense())
    rules = px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=size.groups)
    whole = px.chain(attack, px.coding.vote(codec, R), rules)
    free = px.chain(px.reduce(px.codecs.dense()))
    return {
        "no attack: uncompressed": configured(size, free, px.adversary.none()),
        "no attack: low rank": configured(size, free, px.adversary.none(), low),
        "no attack: spectral": configured(size, px.chain(px.gather(codec), px.aggregators.mean()), px.adversary.none()),
        "ALIE: uncompressed": configured(size, px.chain(attack, dense, px.aggregators.mean()), liars),
        "ALIE: low rank": configured(size, px.chain(attack, dense, px.aggregators.mean()), liars, low),
        "ALIE: spectral": configured(size, px.chain(attack, px.gather(codec), px.aggregators.mean()), liars),
        "ALIE: median": configured(size, px.chain(attack, dense, px.aggregators.median()), liars),
        "ALIE: vote": configured(
            size, px.chain(attack, px.coding.vote(px.codecs.dense(), R), px.aggregators.mean()), liars
        ),
        "ALIE: DETOX": configured(size, px.chain(attack, px.coding.vote(px.codecs.dense(), R), rules), liars),
        "ALIE: all": configured(size, whole, liars, low),
        "ALIE: all, half the rank": configured(size, whole, liars, lower),
        # two liars share a group, whose vote they win
        "ALIE, a group lost: DETOX": configured(
            size, px.chain(attack, px.coding.vote(px.codecs.dense(), R), rules), lost
        ),
        "ALIE, a group lost: all": configured(size, whole, lost, low),
    }

# SPDX-License-Identifier: Apache-2.0
"""Four systems in one chain: a factorized model, spectrally compressed, voted by digest, aggregated by DETOX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import phalanx as px
from phalanx.attacks.adversary import Threat
from phalanx.core.codec import Codec
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.cluster import cluster_tables
from phalanx_experiments.figures.convergence import plot_convergence
from phalanx_experiments.recipes.size import Size

R = 3


@dataclass(frozen=True)
class Setting:
    """The size of the runs, the attackers, and the strength of each method.

    Args:
        low: the surgery, from the ratio of its ranks to the full ones.
        byzantine: number of Byzantine workers; no two in one group of the vote but where the label says so.
        groups: of votes, each averaged before the median across them.
        budget: expected atoms of a matrix.
        smallest: entries of the smallest tensor that is compressed.
    """

    size: Size
    low: Callable[[float], Surgery]
    ratio: float
    byzantine: int
    groups: int
    budget: float
    smallest: int = 1000


def optimizer(lr: float) -> ServerOptimizer:
    """SGD with momentum; its steps fall to zero over the run."""
    return px.optim.sgd(lr, 0.9, schedule=px.optim.cosine())


SETTINGS = {
    "smoke": Setting(
        Size(
            data=px.data.digits(),
            model=px.models.cnn(channels=(8, 16, 32)),
            batch=60,
            optimizer=optimizer(0.05),
            rounds=20,
            evaluate_every=10,
            workers=9,
        ),
        low=partial(px.lowrank.pufferfish, warmup=0.0, first=1, keep=("0",)),
        ratio=0.5,
        byzantine=2,
        groups=3,
        budget=2,
        smallest=100,
    ),
    "laptop": Setting(
        Size(
            # the network of atomo-convergence: 768,042 parameters, most of them where images are small
            data=px.data.cifar10(test=2000, size=16),
            model=px.models.cnn(channels=(32, 64, 256, 256)),
            augment=px.data.crop_flip(pad=1),
            # ALIE hides in the noise of small shares
            batch=72,
            optimizer=optimizer(0.02),
            rounds=300,
            evaluate_every=20,
            workers=9,
            precision="bf16",
        ),
        low=partial(px.lowrank.pufferfish, warmup=0.0, first=1, keep=("0", "16")),
        ratio=0.5,
        byzantine=2,
        groups=3,
        budget=24,
    ),
    # the cluster and the Byzantine workers of section 7.4.1, the model and its hybrid of section 4.5.4
    "paper": Setting(
        Size(
            data=px.data.cifar10(),
            model=px.models.resnet18(),
            augment=px.data.crop_flip(),
            batch=1440,
            optimizer=optimizer(0.1),
            rounds=10_000,
            evaluate_every=250,
            workers=45,
        ),
        low=px.lowrank.pufferfish,
        ratio=0.25,
        byzantine=5,
        groups=3,
        budget=24,
    ),
}


def spectral(setting: Setting) -> Codec:
    """ATOMO with singular vectors in QSGD, of more levels than in atomo-convergence, as the rule averages few votes."""
    return px.codecs.atomo(
        px.codecs.spectral("matrix"),
        budget=setting.budget,
        vectors=px.codecs.qsgd(bits=4, norm="linf"),
        draws="systematic",
        smallest=setting.smallest,
    )


@recipe("composition", plot=plot_convergence, tables=cluster_tables)
def composition(scale: str) -> dict[str, Run]:
    """A factorized model, spectrally compressed, voted by digest, aggregated by DETOX, under ALIE: all and each."""
    setting = SETTINGS[scale]
    low, lower = setting.low(setting.ratio), setting.low(setting.ratio / 2)
    codec, dense = spectral(setting), px.codecs.dense()
    attack, mean, median = px.attacks.alie(z=1.0), px.aggregators.mean(), px.aggregators.median()
    rules = px.aggregators.hierarchy(mean, median, groups=setting.groups)

    def free(scheme: Stage, surgery: Surgery | None = None) -> Run:
        return setting.size.run(scheme, surgery, byzantine=px.adversary.none())

    def vote(codec: Codec) -> Stage:
        # places are known, so that a run can say whether a group is lost
        return px.coding.vote(codec, R, placement=px.coding.in_order())

    # the favourable case: no two of them in one vote group
    spread = px.adversary.evenly_spaced(setting.byzantine)

    def attacked(*stages: Stage, surgery: Surgery | None = None, byzantine: Threat = spread) -> Run:
        return setting.size.run(px.chain(attack, *stages), surgery, byzantine=byzantine)

    # two Byzantine workers share a group, whose vote they win
    lost = px.adversary.workers((0, 1, *range(R, R * (setting.byzantine - 1), R)))
    return {
        "no attack: uncompressed": free(px.chain(px.reduce(dense))),
        "no attack: low rank": free(px.chain(px.reduce(dense)), low),
        "no attack: spectral": free(px.chain(px.gather(codec), mean)),
        "ALIE: uncompressed": attacked(px.gather(dense), mean),
        "ALIE: low rank": attacked(px.gather(dense), mean, surgery=low),
        "ALIE: spectral": attacked(px.gather(codec), mean),
        "ALIE: median": attacked(px.gather(dense), median),
        "ALIE: vote": attacked(vote(dense), mean),
        "ALIE: DETOX": attacked(vote(dense), rules),
        "ALIE: all": attacked(vote(codec), rules, surgery=low),
        "ALIE: all, half the rank": attacked(vote(codec), rules, surgery=lower),
        "ALIE, a group lost: DETOX": attacked(vote(dense), rules, byzantine=lost),
        "ALIE, a group lost: all": attacked(vote(codec), rules, surgery=low, byzantine=lost),
    }

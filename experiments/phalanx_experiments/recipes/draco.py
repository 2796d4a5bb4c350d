# SPDX-License-Identifier: Apache-2.0
"""Exact recovery against the geometric median: tables 6.2 to 6.4, figures 6.2 and 6.4."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.attacks.adversary import Threat
from phalanx.core.stage import Stage
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run
from phalanx_experiments.figures.cluster import cluster_tables, plot_cluster


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        models: by the name of their panel; a single one needs none.
        batch: examples a round over all workers.
        liars: numbers of Byzantine workers.
    """

    data: Data
    models: dict[str, Model]
    batch: int
    optimizer: ServerOptimizer
    rounds: int
    evaluate_every: int
    liars: tuple[int, ...] = (1, 3, 5)
    workers: int = 45
    augment: Augment | None = None


ATTACKS: dict[str, Stage] = {"reverse": px.attacks.reverse(c=100), "constant": px.attacks.constant(value=-100)}


def configured(size: Size, model: Model, attack: Stage, scheme: Stage, byzantine: Threat) -> Run:
    """One run; as in the dissertation other workers lie in every round."""
    phase = px.Phase(
        work=px.training.gradient(batch=size.batch),
        scheme=px.chain(attack, scheme),
        optimizer=size.optimizer,
        rounds=size.rounds,
    )
    return px.Run(
        data=size.data,
        model=model,
        phases=(phase,),
        workers=size.workers,
        byzantine=byzantine,
        augment=size.augment,
        evaluate_every=size.evaluate_every,
    )


def codes(s: int) -> dict[str, Stage]:
    """The geometric median and both codes for s liars."""
    gather = px.gather(px.codecs.dense())
    return {
        "geometric median": px.chain(gather, px.aggregators.geometric_median()),
        f"repetition r={2 * s + 1}": px.chain(px.coding.vote(px.codecs.dense(), r=2 * s + 1), px.aggregators.mean()),
        f"cyclic s={s}": px.chain(gather, px.coding.cyclic(s=s)),
    }


def panels(size: Size, attacks: dict[str, Stage] = ATTACKS) -> dict[str, Run]:
    """A panel for each model, attack and number of liars, and one reference without liars for each model."""
    mean, made = px.chain(px.gather(px.codecs.dense()), px.aggregators.mean()), {}
    for name, model in size.models.items():
        first = next(iter(attacks.values()))
        head = f"{name}: " if name else ""
        made[f"{head}no attack"] = configured(size, model, first, mean, px.adversary.none())
        for word, attack in attacks.items():
            for s in size.liars:
                panel = ", ".join(part for part in (name, word, f"s={s}") if part)
                for label, scheme in codes(s).items():
                    run = configured(size, model, attack, scheme, px.adversary.random(s, every=1))
                    made[f"{panel}: {label}"] = run
    return made


MNIST = {
    "smoke": Size(
        px.data.mnist(train=3000, test=500),
        {"": px.models.mlp((16,))},
        90,
        px.optim.sgd(0.1),
        8,
        4,
        liars=(1,),
        workers=9,
    ),
    "laptop": Size(
        px.data.mnist(test=5000),
        {"FC": px.models.fc(), "LeNet": px.models.lenet()},
        720,
        px.optim.sgd(0.1),
        60,
        5,
        liars=(1, 5),
    ),
    # table 6.1
    "paper": Size(
        px.data.mnist(), {"FC": px.models.fc(), "LeNet": px.models.lenet()}, 720, px.optim.sgd(0.01), 10_000, 100
    ),
}
CIFAR = {
    "smoke": Size(
        px.data.cifar10(train=500, test=200, size=16),
        {"": px.models.cnn(channels=(8, 16))},
        90,
        px.optim.sgd(0.1),
        4,
        2,
        (1,),
        9,
    ),
    "laptop": Size(
        px.data.cifar10(test=2000, size=16),
        {"": px.models.cnn(channels=(16, 32, 64))},
        180,
        px.optim.sgd(0.1),
        300,
        50,
        (5,),
        augment=px.data.crop_flip(pad=1),
    ),
    "paper": Size(
        px.data.cifar10(), {"": px.models.resnet18()}, 180, px.optim.sgd(0.1), 10_000, 200, augment=px.data.crop_flip()
    ),
}
REVIEWS = {
    "smoke": Size(
        px.data.movie_review(train=500, test=200), {"": px.models.cnn_rand()}, 90, px.optim.adam(0.001), 4, 2, (1,), 9
    ),
    "laptop": Size(
        px.data.movie_review(vocabulary=5000),
        {"": px.models.cnn_rand(dim=32, maps=32)},
        180,
        px.optim.adam(0.003),
        300,
        25,
        (3,),
        workers=15,
    ),
    "paper": Size(px.data.movie_review(), {"": px.models.cnn_rand()}, 180, px.optim.adam(0.001), 10_000, 100),
}


@recipe("draco-mnist", plot=plot_cluster, tables=cluster_tables)
def draco_mnist(scale: str) -> dict[str, Run]:
    """Table 6.2, figures 6.2 a, b, e and f: MNIST under both codes and the geometric median."""
    return panels(MNIST[scale])


@recipe("draco-cifar", plot=plot_cluster, tables=cluster_tables)
def draco_cifar(scale: str) -> dict[str, Run]:
    """Table 6.3, figures 6.2 c and g: CIFAR-10 under both codes and the geometric median."""
    return panels(CIFAR[scale])


@recipe("draco-mr", plot=plot_cluster, tables=cluster_tables)
def draco_mr(scale: str) -> dict[str, Run]:
    """Table 6.4, figures 6.2 d and h: Movie Review under both codes and the geometric median."""
    return panels(REVIEWS[scale])


@recipe("draco-adversaries", plot=plot_cluster, tables=cluster_tables)
def draco_adversaries(scale: str) -> dict[str, Run]:
    """Figure 6.4: 15 workers of which 1 to 7 send a constant; what more liars cost each code."""
    size, attack = CIFAR[scale], ATTACKS["constant"]
    workers, most = (7, 3) if scale == "smoke" else (15, 7)
    (model,) = size.models.values()
    made: dict[str, Run] = {}
    for s in range(1, most + 1):
        for label, scheme in codes(s).items():
            if label != "geometric median":
                run = configured(size, model, attack, scheme, px.adversary.random(s, every=1))
                kind = label.split()[0]
                made[f"{kind}: {label}"] = px.training.amend(run, "workers", workers)
    return made

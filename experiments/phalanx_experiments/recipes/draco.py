# SPDX-License-Identifier: Apache-2.0
"""Exact recovery against the geometric median: tables 6.2 to 6.4, figures 6.2 and 6.4."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.attacks.adversary import Threat
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.training.optim import Finish
from phalanx.models.model import Model
from phalanx.training.phase import Run
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.cluster import cluster_tables, plot_cluster
from phalanx.core.stage import Stage


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
    finish: Finish
    rounds: int
    evaluate_every: int
    liars: tuple[int, ...] = (1, 3, 5)
    workers: int = 45
    augment: Augment | None = None


ATTACKS: dict[str, Stage] = {"reverse": px.reverse(c=100), "constant": px.constant(value=-100)}


def configured(size: Size, model: Model, attack: Stage, scheme: Stage, byzantine: Threat) -> Run:
    """One run; as in the dissertation other workers lie in every round."""
    phase = px.phase(
        work=px.gradient(batch=size.batch),
        scheme=px.chain(attack, scheme),
        finish=size.finish,
        rounds=size.rounds,
    )
    return px.run(
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
    gather = px.gather(px.dense())
    return {
        "geometric median": px.chain(gather, px.geometric_median()),
        f"repetition r={2 * s + 1}": px.chain(px.vote(px.dense(), r=2 * s + 1), px.mean()),
        f"cyclic s={s}": px.chain(gather, px.cyclic(s=s)),
    }


def panels(size: Size, attacks: dict[str, Stage] = ATTACKS) -> dict[str, Run]:
    """A panel for each model, attack and number of liars, and one reference without liars for each model."""
    mean, made = px.chain(px.gather(px.dense()), px.mean()), {}
    for name, model in size.models.items():
        first = next(iter(attacks.values()))
        head = f"{name}: " if name else ""
        made[f"{head}no attack"] = configured(size, model, first, mean, px.nobody())
        for word, attack in attacks.items():
            for s in size.liars:
                panel = ", ".join(part for part in (name, word, f"s={s}") if part)
                for label, scheme in codes(s).items():
                    run = configured(size, model, attack, scheme, px.drawn(s, every=1))
                    made[f"{panel}: {label}"] = run
    return made


MNIST = {
    "smoke": Size(px.mnist(train=3000, test=500), {"": px.mlp((16,))}, 90, px.sgd(0.1), 8, 4, liars=(1,), workers=9),
    "laptop": Size(px.mnist(test=5000), {"FC": px.fc(), "LeNet": px.lenet()}, 720, px.sgd(0.1), 60, 5, liars=(1, 5)),
    # table 6.1
    "paper": Size(px.mnist(), {"FC": px.fc(), "LeNet": px.lenet()}, 720, px.sgd(0.01), 10_000, 100),
}
CIFAR = {
    "smoke": Size(
        px.cifar10(train=500, test=200, size=16), {"": px.cnn(channels=(8, 16))}, 90, px.sgd(0.1), 4, 2, (1,), 9
    ),
    "laptop": Size(
        px.cifar10(test=2000, size=16),
        {"": px.cnn(channels=(16, 32, 64))},
        180,
        px.sgd(0.1),
        300,
        50,
        (5,),
        augment=px.crop_flip(pad=1),
    ),
    "paper": Size(px.cifar10(), {"": px.resnet18()}, 180, px.sgd(0.1), 10_000, 200, augment=px.crop_flip()),
}
REVIEWS = {
    "smoke": Size(px.movie_review(train=500, test=200), {"": px.cnn_rand()}, 90, px.adam(0.001), 4, 2, (1,), 9),
    "laptop": Size(
        px.movie_review(vocabulary=5000),
        {"": px.cnn_rand(dim=32, maps=32)},
        180,
        px.adam(0.003),
        300,
        25,
        (3,),
        workers=15,
    ),
    "paper": Size(px.movie_review(), {"": px.cnn_rand()}, 180, px.adam(0.001), 10_000, 100),
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
                run = configured(size, model, attack, scheme, px.drawn(s, every=1))
                kind = label.split()[0]
                made[f"{kind}: {label}"] = px.amend(run, "workers", workers)
    return made

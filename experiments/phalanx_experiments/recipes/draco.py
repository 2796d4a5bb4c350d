# SPDX-License-Identifier: Apache-2.0
"""Exact recovery against the geometric median: tables 6.2 to 6.4, figures 6.2 and 6.4."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.core.stage import Stage
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.cluster import cluster_tables, plot_cluster
from phalanx_experiments.recipes.size import Size, in_panel, with_models


@dataclass(frozen=True)
class Cluster:
    """What is trained, and how many workers are Byzantine.

    Args:
        sizes: by the name of their panel; a single panel needs no name.
        byzantine: numbers of Byzantine workers.
    """

    sizes: dict[str, Size]
    byzantine: tuple[int, ...] = (1, 3, 5)


ATTACKS: dict[str, Stage] = {"reverse": px.attacks.reverse(c=100), "constant": px.attacks.constant(value=-100)}


def codes(s: int) -> dict[str, Stage]:
    """The geometric median, and both codes for s Byzantine workers."""
    gather = px.gather(px.codecs.dense())
    return {
        "geometric median": px.chain(gather, px.aggregators.geometric_median()),
        f"repetition r={2 * s + 1}": px.chain(px.coding.vote(px.codecs.dense(), r=2 * s + 1), px.aggregators.mean()),
        f"cyclic s={s}": px.chain(px.coding.cyclic(s=s)),
    }


def panels(cluster: Cluster, attacks: dict[str, Stage] = ATTACKS) -> dict[str, Run]:
    """A panel for each network, attack and number of Byzantine workers, and for each network a run without them.

    As in the dissertation, other workers are Byzantine in every round.
    """
    mean, made = px.chain(px.gather(px.codecs.dense()), px.aggregators.mean()), dict[str, Run]()
    for name, size in cluster.sizes.items():
        first = next(iter(attacks.values()))
        made[in_panel(name, "no attack")] = size.run(px.chain(first, mean), byzantine=px.adversary.none())
        for word, attack in attacks.items():
            for s in cluster.byzantine:
                panel = ", ".join(part for part in (name, word, f"s={s}") if part)
                for label, scheme in codes(s).items():
                    byzantine = px.adversary.random(s, every=1)
                    made[f"{panel}: {label}"] = size.run(px.chain(attack, scheme), byzantine=byzantine)
    return made


_NETWORKS: dict[str, Model] = {"FC": px.models.fc(), "LeNet": px.models.lenet()}
MNIST = {
    "smoke": Cluster(
        {
            "": Size(
                data=px.data.mnist(train=3000, test=500),
                model=px.models.mlp((16,)),
                batch=90,
                optimizer=px.optim.sgd(0.1),
                rounds=8,
                evaluate_every=4,
                workers=9,
            )
        },
        byzantine=(1,),
    ),
    "laptop": Cluster(
        with_models(
            Size(
                data=px.data.mnist(test=5000),
                model=px.models.fc(),
                batch=720,
                optimizer=px.optim.sgd(0.1),
                rounds=60,
                evaluate_every=5,
                workers=45,
            ),
            _NETWORKS,
        ),
        byzantine=(1, 5),
    ),
    # table 6.1
    "paper": Cluster(
        with_models(
            Size(
                data=px.data.mnist(),
                model=px.models.fc(),
                batch=720,
                optimizer=px.optim.sgd(0.01),
                rounds=10_000,
                evaluate_every=100,
                workers=45,
            ),
            _NETWORKS,
        )
    ),
}
CIFAR = {
    "smoke": Cluster(
        {
            "": Size(
                data=px.data.cifar10(train=500, test=200, size=16),
                model=px.models.cnn(channels=(8, 16)),
                batch=90,
                optimizer=px.optim.sgd(0.1),
                rounds=4,
                evaluate_every=2,
                workers=9,
            )
        },
        byzantine=(1,),
    ),
    "laptop": Cluster(
        {
            "": Size(
                data=px.data.cifar10(test=2000, size=16),
                model=px.models.cnn(channels=(16, 32, 64)),
                augment=px.data.crop_flip(pad=1),
                batch=180,
                optimizer=px.optim.sgd(0.1),
                rounds=300,
                evaluate_every=50,
                workers=45,
            )
        },
        byzantine=(5,),
    ),
    "paper": Cluster(
        {
            "": Size(
                data=px.data.cifar10(),
                model=px.models.resnet18(),
                augment=px.data.crop_flip(),
                batch=180,
                optimizer=px.optim.sgd(0.1),
                rounds=10_000,
                evaluate_every=200,
                workers=45,
            )
        }
    ),
}
REVIEWS = {
    "smoke": Cluster(
        {
            "": Size(
                data=px.data.movie_review(train=500, test=200),
                model=px.models.cnn_rand(),
                batch=90,
                optimizer=px.optim.adam(0.001),
                rounds=4,
                evaluate_every=2,
                workers=9,
            )
        },
        byzantine=(1,),
    ),
    "laptop": Cluster(
        {
            "": Size(
                data=px.data.movie_review(vocabulary=5000),
                model=px.models.cnn_rand(dim=32, maps=32),
                batch=180,
                optimizer=px.optim.adam(0.003),
                rounds=300,
                evaluate_every=25,
                workers=15,
            )
        },
        byzantine=(3,),
    ),
    "paper": Cluster(
        {
            "": Size(
                data=px.data.movie_review(),
                model=px.models.cnn_rand(),
                batch=180,
                optimizer=px.optim.adam(0.001),
                rounds=10_000,
                evaluate_every=100,
                workers=45,
            )
        }
    ),
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
    """Figure 6.4: 15 workers of which 1 to 7 send a constant; what more Byzantine workers cost each code."""
    attack = ATTACKS["constant"]
    workers, most = (7, 3) if scale == "smoke" else (15, 7)
    (size,) = CIFAR[scale].sizes.values()
    size = replace(size, workers=workers)
    made: dict[str, Run] = {}
    for s in range(1, most + 1):
        for label, scheme in codes(s).items():
            if label != "geometric median":
                kind = label.split()[0]
                byzantine = px.adversary.random(s, every=1)
                made[f"{kind}: {label}"] = size.run(px.chain(attack, scheme), byzantine=byzantine)
    return made

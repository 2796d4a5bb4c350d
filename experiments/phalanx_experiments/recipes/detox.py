# SPDX-License-Identifier: Apache-2.0
"""Robust rules alone and behind a vote: table 7.1 and figures 7.1 to 7.9."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
from phalanx.attacks.adversary import Threat
from phalanx.core.stage import Stage
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.cluster import cluster_tables, plot_cluster
from phalanx_experiments.recipes.size import Size, in_panel

WORKERS, R = 45, 3
VOTES_LOST = 2  # f of the rules behind the vote: 5 Byzantine workers win at most so many of 15 groups

# ALIE hides in the noise of small shares: at the published 32 examples a worker it hardly harms anybody at laptop scale
_PAPER = Size(
    data=px.data.cifar10(),
    model=px.models.resnet18(),
    augment=px.data.crop_flip(),
    batch=1440,
    optimizer=px.optim.sgd(0.1, 0.9, schedule=px.optim.decay(0.99, every=10)),
    rounds=3000,
    evaluate_every=100,
    workers=WORKERS,
)
# by the name of the panel; a single panel needs no name
SIZES = {
    "smoke": {
        "": Size(
            data=px.data.mnist(train=3000, test=500),
            model=px.models.mlp((16,)),
            batch=180,
            optimizer=px.optim.sgd(0.05, 0.9),
            rounds=12,
            evaluate_every=6,
            workers=WORKERS,
        )
    },
    "laptop": {
        "": Size(
            data=px.data.mnist(test=5000),
            model=px.models.lenet(channels=(8, 16), hidden=32),
            batch=360,
            optimizer=px.optim.sgd(0.05, 0.9),
            rounds=150,
            evaluate_every=25,
            workers=WORKERS,
        )
    },
    # sections 7.4.1 and 7.4.2
    "paper": {
        "CIFAR-10": _PAPER,
        "CIFAR-100": replace(_PAPER, data=px.data.cifar100(), model=px.models.vgg13_bn()),
    },
}
# tables 7.2 and 7.3: first step size and factor of every ten rounds, on CIFAR-10 and on CIFAR-100
TUNED: dict[type[Stage], dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    px.attacks.reverse: {
        "DETOX Multi-Krum + mean": ((0.1, 1.0), (0.1, 1.0)),
        "DETOX Bulyan + mean": ((0.1, 1.0), (0.1, 1.0)),
        "DETOX mean + median": ((0.1, 0.99), (0.1, 0.99)),
        "Multi-Krum": ((2**-5, 1.0), (2**-5, 1.0)),
        "Bulyan": ((0.1, 1.0), (0.1, 1.0)),
        "median": ((0.1, 1.0), (0.1, 0.995)),
    },
    px.attacks.alie: {
        "DETOX Multi-Krum + mean": ((0.1, 0.98), (0.1, 0.965)),
        "DETOX Bulyan + mean": ((0.1, 0.99), (0.1, 0.965)),
        "DETOX mean + median": ((0.1, 0.98), (0.1, 0.98)),
        "Multi-Krum": ((2**-7, 0.96), (2**-8, 0.965)),
        "Bulyan": ((2**-9, 0.95), (2**-8, 0.965)),
        "median": ((2**-9, 0.95), (2**-9, 0.965)),
    },
}
# step sizes of sign votes, whose rows have entries of size 1
SIGN_LR = {"smoke": 0.002, "laptop": 0.001, "paper": 0.0001}


def plain_rules(q: int) -> dict[str, Stage]:
    """The rules on the rows of all workers, without a vote."""
    gather = px.gather(px.codecs.dense())
    return {
        "median": px.chain(gather, px.aggregators.median()),
        "Multi-Krum": px.chain(gather, px.aggregators.multi_krum(f=q)),
        "Bulyan": px.chain(gather, px.aggregators.bulyan(f=q)),
    }


def pairings(groups: int) -> dict[str, Stage]:
    """The rules behind the vote; mean + median has `groups` groups."""
    return {
        "DETOX mean + median": px.coding.detox(R, px.aggregators.mean(), px.aggregators.median(), groups=groups),
        "DETOX Multi-Krum + mean": px.coding.detox(
            R, px.aggregators.multi_krum(f=VOTES_LOST), px.aggregators.mean(), groups=2
        ),
        "DETOX Bulyan + mean": px.coding.detox(R, px.aggregators.bulyan(f=VOTES_LOST), px.aggregators.mean(), groups=1),
    }


def runs(
    sizes: dict[str, Size], schemes: dict[str, Stage], attack: Stage, byzantine: Threat, panel: str = ""
) -> dict[str, Run]:
    """A run for each network and scheme under an attack."""
    by_label: dict[str, Run] = {}
    for network, size in sizes.items():
        names = ", ".join(name for name in (network, panel) if name)
        for label, scheme in schemes.items():
            tuned = _tuned(size, network, attack, label)
            by_label[in_panel(names, label)] = tuned.run(px.chain(attack, scheme), byzantine=byzantine)
    return by_label


def _tuned(size: Size, network: str, attack: Stage, label: str) -> Size:
    """The size with the published step sizes of a rule, where it has some."""
    table = TUNED.get(type(attack), {})
    if network not in ("CIFAR-10", "CIFAR-100") or label not in table:
        return size
    rate, factor = table[label][network == "CIFAR-100"]
    schedule = px.optim.decay(factor, every=10) if factor != 1 else None
    return replace(size, optimizer=px.optim.sgd(rate, 0.9, schedule=schedule))


def unattacked(sizes: dict[str, Size], attack: Stage, scheme: Stage | None = None) -> dict[str, Run]:
    """The mean of all workers, none of which attacks."""
    scheme = scheme or px.chain(px.gather(px.codecs.dense()), px.aggregators.mean())
    return runs(sizes, {"no attack": scheme}, attack, px.adversary.none())


@recipe("detox-alie", plot=plot_cluster, tables=cluster_tables)
def detox_alie(scale: str) -> dict[str, Run]:
    """Table 7.1, figures 7.1 and 7.2: median, Multi-Krum and Bulyan under ALIE with z = 1, alone and behind a vote."""
    sizes, attack = SIZES[scale], px.attacks.alie(z=1.0)
    labelled = unattacked(sizes, attack)
    for q in (5, 10) if scale != "paper" else (5,):
        labelled |= runs(sizes, plain_rules(q) | pairings(groups=3), attack, px.adversary.random(q), f"q={q}")
    return labelled


@recipe("detox-reverse", plot=plot_cluster, tables=cluster_tables)
def detox_reverse(scale: str) -> dict[str, Run]:
    """Figures 7.3 and 7.4: the same rules under reversed gradients, which all of them tolerate: which is faster."""
    sizes, attack = SIZES[scale], px.attacks.reverse(c=100)
    return unattacked(sizes, attack) | runs(
        sizes, plain_rules(5) | pairings(groups=5), attack, px.adversary.random(5), "q=5"
    )


@recipe("detox-signsgd", plot=plot_cluster, tables=cluster_tables)
def detox_signsgd(scale: str) -> dict[str, Run]:
    """Figure 7.5: majority of signs against workers that send minus one everywhere, alone and behind a vote."""
    sizes, attack = SIZES[scale], px.attacks.constant(value=-1)
    schedule = px.optim.decay(0.99, every=10) if scale == "paper" else None
    optimizer = px.optim.sgd(SIGN_LR[scale], schedule=schedule)
    sizes = {name: replace(size, optimizer=optimizer) for name, size in sizes.items()}
    alone = px.chain(px.gather(px.codecs.sign()), px.aggregators.majority())
    schemes: dict[str, Stage] = {
        "signSGD": alone,
        "DETOX signSGD": px.coding.detox(
            R, px.aggregators.majority(), px.aggregators.majority(), groups=5, codec=px.codecs.sign()
        ),
    }
    labelled = unattacked(sizes, attack, alone)
    for q in (5, 10) if scale != "paper" else (5,):
        labelled |= runs(sizes, schemes, attack, px.adversary.random(q), f"q={q}")
    return labelled


@recipe("detox-q", plot=plot_cluster, tables=cluster_tables)
def detox_q(scale: str) -> dict[str, Run]:
    """Figure 7.7: no or one Byzantine worker under ALIE, where a rule should cost nothing."""
    sizes, attack = SIZES[scale], px.attacks.alie(z=1.0)
    labelled = unattacked(sizes, attack)
    for q in (0, 1):
        # the rules are set up for five, as the number is not known to them
        labelled |= runs(sizes, plain_rules(5) | pairings(groups=3), attack, px.adversary.random(q), f"q={q}")
    return labelled


@recipe("detox-vs-draco", plot=plot_cluster, tables=cluster_tables)
def detox_vs_draco(scale: str) -> dict[str, Run]:
    """Figures 7.8 and 7.9: DETOX with three computations of each gradient against DRACO with eleven."""
    sizes, attack = SIZES[scale], px.attacks.reverse(c=100)
    draco: dict[str, Stage] = {
        "DRACO repetition r=11": px.chain(px.coding.vote(px.codecs.dense(), r=11), px.aggregators.mean())
    }
    return unattacked(sizes, attack) | runs(sizes, pairings(groups=5) | draco, attack, px.adversary.random(5), "q=5")

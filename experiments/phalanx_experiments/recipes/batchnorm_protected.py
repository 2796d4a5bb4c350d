# SPDX-License-Identifier: Apache-2.0
"""BatchNorm statistics that a rule protects together with the gradients, and statistics that are averaged."""

from __future__ import annotations

import phalanx as px
from phalanx.core.aggregator import Aggregator
from phalanx.core.stage import Stage
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.grid import grid_tables, plot_grid
from phalanx_experiments.recipes.size import Size

WORKERS, F = 15, 3

STATISTICS = px.attacks.only_on(px.attacks.constant(value=100.0), at="installed")
DIRECTIONS = px.attacks.only_on(px.attacks.reverse(c=10.0))
# a hundred deviations of statistics make a row a few times as far from the others as its gradient does
HIDDEN = px.attacks.only_on(px.attacks.alie(z=100.0), at="installed")
ATTACKS: dict[str, Stage | None] = {
    "no attack": None,
    "statistics": STATISTICS,
    "statistics, a little": HIDDEN,
    "directions": DIRECTIONS,
    "both": px.chain(STATISTICS, DIRECTIONS),
}

SIZES = {
    "smoke": Size(
        data=px.data.mnist(train=3000, test=500),
        model=px.models.cnn((4, 8)),
        batch=120,
        optimizer=px.optim.sgd(0.1, 0.9),
        rounds=10,
        evaluate_every=5,
        workers=WORKERS,
    ),
    "laptop": Size(
        data=px.data.mnist(test=2000),
        model=px.models.cnn((8, 16, 16)),
        batch=240,
        optimizer=px.optim.sgd(0.1, 0.9),
        rounds=40,
        evaluate_every=10,
        workers=WORKERS,
    ),
    "paper": Size(
        data=px.data.cifar10(),
        model=px.models.resnet18(),
        augment=px.data.crop_flip(),
        batch=480,
        optimizer=px.optim.sgd(0.1, 0.9, schedule=px.optim.decay(0.99, every=10)),
        rounds=3000,
        evaluate_every=100,
        workers=WORKERS,
    ),
}


def rules() -> dict[str, Stage]:
    """Rules for whole rows, which protect statistics as they protect gradients."""
    return {
        "mean": px.aggregators.mean(),
        "median": px.aggregators.median(),
        "Krum": px.aggregators.krum(f=F),
        "geometric median": px.aggregators.geometric_median(),
        "vote": px.chain(px.coding.group_vote(r=3, placement=px.coding.in_order()), px.aggregators.mean()),
    }


def schemes() -> dict[str, Stage]:
    """The rules with statistics in the rows, with averaged statistics, and with a rule for statistics alone."""
    whole = rules()
    by_distance = ("Krum", "geometric median")
    averaged = {
        f"{name}, statistics averaged": px.aggregators.split_by_part(rule)
        for name, rule in whole.items()
        if name != "mean"
    }
    parts: dict[str, Aggregator] = {
        f"{name}, statistics by median": px.aggregators.split_by_part(whole[name], px.aggregators.median())
        for name in by_distance
    }
    return {**whole, **averaged, **parts}


@recipe("batchnorm-protected", plot=plot_grid, tables=grid_tables)
def batchnorm_protected(scale: str) -> dict[str, Run]:
    """Poisoned BatchNorm statistics, gradients or both, against rules over whole rows and over gradients alone."""
    size = SIZES[scale]
    runs: dict[str, Run] = {}
    for word, attack in ATTACKS.items():
        # the favourable case: no two of them in one vote group
        byzantine = px.adversary.evenly_spaced(F) if attack else px.adversary.none()
        for name, rule in schemes().items():
            stages = [stage for stage in (attack, px.gather(px.codecs.dense()), rule) if stage is not None]
            runs[f"{word}: {name}"] = size.run(px.chain(*stages), byzantine=byzantine)
    return runs

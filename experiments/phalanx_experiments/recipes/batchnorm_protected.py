# SPDX-License-Identifier: Apache-2.0
"""BatchNorm statistics that a rule protects with the gradients, and statistics that are averaged plainly."""

from __future__ import annotations

from dataclasses import dataclass

import phalanx as px
from phalanx.core.aggregator import Aggregator
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.training.optim import Finish
from phalanx.models.model import Model
from phalanx.training.phase import Run
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.grid import grid_tables, plot_grid
from phalanx.core.stage import Stage

WORKERS, F = 15, 3

STATISTICS = px.aimed(px.constant(value=100.0), at="installed")
DIRECTIONS = px.aimed(px.reverse(c=10.0))
# a hundred deviations of statistics make a row a few times as far from the others as its gradient does
HIDDEN = px.aimed(px.alie(z=100.0), at="installed")
ATTACKS: dict[str, Stage | None] = {
    "no attack": None,
    "statistics": STATISTICS,
    "statistics, a little": HIDDEN,
    "directions": DIRECTIONS,
    "both": px.chain(STATISTICS, DIRECTIONS),
}


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        batch: examples a round over all workers.
    """

    data: Data
    model: Model
    batch: int
    finish: Finish
    rounds: int
    evaluate_every: int
    augment: Augment | None = None


SIZES = {
    "smoke": Size(px.mnist(train=3000, test=500), px.cnn((4, 8)), 120, px.sgd(0.1, 0.9), 10, 5),
    "laptop": Size(px.mnist(test=2000), px.cnn((8, 16, 16)), 240, px.sgd(0.1, 0.9), 40, 10),
    "paper": Size(
        px.cifar10(),
        px.resnet18(),
        480,
        px.sgd(0.1, 0.9, schedule=px.decay(0.99, every=10)),
        3000,
        100,
        augment=px.crop_flip(),
    ),
}


def rules() -> dict[str, Stage]:
    """For whole rows: statistics are protected as gradients are."""
    return {
        "mean": px.mean(),
        "median": px.median(),
        "Krum": px.krum(f=F),
        "geometric median": px.geometric_median(),
        "vote": px.chain(px.group_vote(r=3), px.mean()),
    }


def schemes() -> dict[str, Stage]:
    """The rules, with statistics in the rows, averaged beside them, and under a rule of their own."""
    made = rules()
    by_distance = ("Krum", "geometric median")
    averaged = {f"{name}, statistics averaged": px.apart(rule) for name, rule in made.items() if name != "mean"}
    own: dict[str, Aggregator] = {
        f"{name}, statistics by median": px.apart(made[name], px.median()) for name in by_distance
    }
    return {**made, **averaged, **own}


@recipe("batchnorm-protected", plot=plot_grid, tables=grid_tables)
def batchnorm_protected(scale: str) -> dict[str, Run]:
    """Poisoned BatchNorm statistics, gradients or both, against rules over whole rows and over gradients alone."""
    size = SIZES[scale]
    made = {}
    for word, attack in ATTACKS.items():
        for name, rule in schemes().items():
            stages = [stage for stage in (attack, px.gather(px.dense()), rule) if stage is not None]
            phase = px.phase(
                work=px.gradient(batch=size.batch),
                scheme=px.chain(*stages),
                finish=size.finish,
                rounds=size.rounds,
            )
            made[f"{word}: {name}"] = px.run(
                data=size.data,
                model=size.model,
                phases=(phase,),
                workers=WORKERS,
                # no two of them in one vote group
                byzantine=px.spread(F) if attack else px.nobody(),
                augment=size.augment,
                evaluate_every=size.evaluate_every,
            )
    return made

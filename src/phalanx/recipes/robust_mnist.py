# SPDX-License-Identifier: Apache-2.0
"""Which rules hold on MNIST, against two crude attacks and a subtle one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.data.dataset import Data
from phalanx.finish import Finish
from phalanx.gate import Gate
from phalanx.models.model import Model
from phalanx.phase import Run
from phalanx.recipes.recipe import recipe
from phalanx.stage import Stage

GATE = px.gate()
OPEN = px.gate(limit=1e38)  # any finite row counts, as in plain data parallel training


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        batch: examples a round over all workers; the subtle attack hides in the noise of small shares.
    """

    data: Data
    model: Model
    finish: Finish
    batch: int
    rounds: int
    evaluate_every: int
    workers: int = 15
    count: int = 3
    groups: int = 3


SIZES = {
    "smoke": Size(px.mnist(train=3000, test=500), px.mlp((32,)), px.sgd(0.05, 0.9), 120, 20, 5),
    # 8 samples a worker
    "laptop": Size(px.mnist(), px.lenet(), px.sgd(0.05, 0.9), 120, 150, 25),
    # dissertation, section 6.5: P=45, s=5, batch 720, lr 0.01; 16 samples a worker
    "paper": Size(px.mnist(), px.lenet(), px.sgd(0.01, 0.9), 720, 3000, 100, workers=45, count=5, groups=5),
}


@recipe("robust-mnist")
def robust_mnist(scale: str) -> dict[str, Run]:
    """MNIST with LeNet: every robust rule against reversed gradients, a constant, and ALIE with z = 1."""
    size = SIZES[scale]
    f = size.count

    def attacked(attack: Stage, *rule: Stage, gate: Gate = GATE) -> Run:
        phase = px.phase(
            work=px.gradient(batch=size.batch),
            scheme=px.chain(attack, px.gather(px.dense(), gate=gate), *rule),
            finish=size.finish,
            rounds=size.rounds,
        )
        return px.run(
            data=size.data,
            model=size.model,
            phases=(phase,),
            workers=size.workers,
            # no two of them in one vote group
            byzantine=px.spread(f),
            evaluate_every=size.evaluate_every,
        )

    attacks = {
        "reverse gradient": px.reverse(c=100),
        "constant": px.constant(value=-100),
        # z from n and f would be 0.2 here, which harms nobody; the dissertation fixes 1
        "ALIE": px.alie(z=1.0),
    }
    rules: dict[str, tuple[Stage, ...]] = {
        "median": (px.median(),),
        "trimmed mean": (px.trimmed_mean(f=f),),
        "krum": (px.krum(f=f),),
        "multi-krum": (px.multi_krum(f=f),),
        "bulyan": (px.bulyan(f=f),),
        "geometric median": (px.geometric_median(),),
        "group vote r=3": (px.group_vote(r=3), px.mean()),
        "DETOX": (px.group_vote(r=3), px.hierarchy(px.mean(), px.median(), groups=size.groups)),
    }
    first = next(iter(attacks.values()))
    runs = {"no attack: mean": replace(attacked(first, px.mean(), gate=OPEN), byzantine=px.nobody())}
    for name, attack in attacks.items():
        runs[f"{name}: mean"] = attacked(attack, px.mean(), gate=OPEN)
        runs |= {f"{name}: {label}": attacked(attack, *rule) for label, rule in rules.items()}
    return runs

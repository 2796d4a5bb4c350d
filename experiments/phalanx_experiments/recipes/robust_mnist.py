# SPDX-License-Identifier: Apache-2.0
"""Which rules hold on MNIST, against two crude attacks and a subtle one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.core.gate import Gate
from phalanx.core.stage import Stage
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.runner.recipe import recipe
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run

GATE = px.gate()
OPEN = px.gate(limit=1e38)  # any finite row counts, as in plain data parallel training


@dataclass(frozen=True)
class Regime:
    """How rows become steps.

    Args:
        batch: examples a round over all workers.
    """

    batch: int
    optimizer: ServerOptimizer
    rounds: int


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        crude: for attacks that send far rows. Shares of 32 examples and no momentum: with shares of 8 Krum and the
            median fail by their own noise.
        subtle: for ALIE, which hides in the noise of small shares; with shares of 32 it harms nobody much.
    """

    data: Data
    model: Model
    crude: Regime
    subtle: Regime
    evaluate_every: int
    workers: int = 15
    count: int = 3
    groups: int = 3


SIZES = {
    "smoke": Size(
        px.data.mnist(train=3000, test=500),
        px.models.mlp((32,)),
        Regime(480, px.optim.sgd(0.1), 20),
        Regime(120, px.optim.sgd(0.05, 0.9), 20),
        evaluate_every=5,
    ),
    "laptop": Size(
        px.data.mnist(),
        px.models.lenet(),
        Regime(480, px.optim.sgd(0.1), 160),
        Regime(120, px.optim.sgd(0.05, 0.9), 120),
        evaluate_every=40,
    ),
    # crude: dissertation, section 6.5; subtle: shares of 8 again, which no table has
    "paper": Size(
        px.data.mnist(),
        px.models.lenet(),
        Regime(720, px.optim.sgd(0.01, 0.9), 3000),
        Regime(360, px.optim.sgd(0.05, 0.9), 1000),
        evaluate_every=100,
        workers=45,
        count=5,
        groups=5,
    ),
}


@recipe("robust-mnist")
def robust_mnist(scale: str) -> dict[str, Run]:
    """MNIST with LeNet: every robust rule against reversed gradients, a constant, and ALIE with z = 1."""
    size = SIZES[scale]
    f = size.count

    def attacked(regime: Regime, attack: Stage, *rule: Stage, gate: Gate = GATE) -> Run:
        phase = px.Phase(
            work=px.training.gradient(batch=regime.batch),
            scheme=px.chain(attack, px.gather(px.codecs.dense(), gate=gate), *rule),
            optimizer=regime.optimizer,
            rounds=regime.rounds,
        )
        return px.Run(
            data=size.data,
            model=size.model,
            phases=(phase,),
            workers=size.workers,
            # no two of them in one vote group
            byzantine=px.adversary.evenly_spaced(f),
            evaluate_every=size.evaluate_every,
        )

    reverse, constant = px.attacks.reverse(c=100), px.attacks.constant(value=-100)
    # z from n and f would be 0.2 here, which harms nobody; the dissertation fixes 1
    alie = px.attacks.alie(z=1.0)
    rules: dict[str, tuple[Stage, ...]] = {
        "median": (px.aggregators.median(),),
        "trimmed mean": (px.aggregators.trimmed_mean(f=f),),
        "krum": (px.aggregators.krum(f=f),),
        "multi-krum": (px.aggregators.multi_krum(f=f),),
        "bulyan": (px.aggregators.bulyan(f=f),),
        "geometric median": (px.aggregators.geometric_median(),),
        "group vote r=3": (px.coding.group_vote(r=3), px.aggregators.mean()),
        "DETOX": (
            px.coding.group_vote(r=3),
            px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=size.groups),
        ),
    }

    def panel(name: str, regime: Regime, attack: Stage) -> dict[str, Run]:
        plain = {f"{name}: mean": attacked(regime, attack, px.aggregators.mean(), gate=OPEN)}
        return plain | {f"{name}: {label}": attacked(regime, attack, *rule) for label, rule in rules.items()}

    def free(regime: Regime, attack: Stage) -> Run:
        return replace(attacked(regime, attack, px.aggregators.mean(), gate=OPEN), byzantine=px.adversary.none())

    return {
        "no attack: mean": free(size.crude, reverse),
        **panel("reverse gradient", size.crude, reverse),
        **panel("constant", size.crude, constant),
        "ALIE, small shares: mean, no attack": free(size.subtle, alie),
        **panel("ALIE, small shares", size.subtle, alie),
    }

# SPDX-License-Identifier: Apache-2.0
"""Robust rules on MNIST against two crude attacks and a subtle one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.core.gate import Gate
from phalanx.core.stage import Stage
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.recipes.size import Size

GATE = px.gate()
OPEN = px.gate(limit=1e38)  # any finite row counts, as in plain data parallel training


@dataclass(frozen=True)
class Setting:
    """The size of the runs under each kind of attack, and the number of attackers.

    Args:
        crude: for attacks that send rows far from the others. Shares of 32 examples and no momentum: with shares of 8
            Krum and the median fail by their own noise.
        subtle: for ALIE, which hides in the noise of small shares; with shares of 32 it harms nobody much.
        f: number of Byzantine workers.
        groups: of votes, behind which the median is taken.
    """

    crude: Size
    subtle: Size
    f: int = 3
    groups: int = 3


_SMOKE = Size(
    data=px.data.mnist(train=3000, test=500),
    model=px.models.mlp((32,)),
    batch=480,
    optimizer=px.optim.sgd(0.1),
    rounds=20,
    evaluate_every=5,
    workers=15,
)
_LAPTOP = Size(
    data=px.data.mnist(),
    model=px.models.lenet(),
    batch=480,
    optimizer=px.optim.sgd(0.1),
    rounds=160,
    evaluate_every=40,
    workers=15,
)
_PAPER = Size(
    data=px.data.mnist(),
    model=px.models.lenet(),
    batch=720,
    optimizer=px.optim.sgd(0.01, 0.9),
    rounds=3000,
    evaluate_every=100,
    workers=45,
)
SETTINGS = {
    "smoke": Setting(_SMOKE, replace(_SMOKE, batch=120, optimizer=px.optim.sgd(0.05, 0.9))),
    "laptop": Setting(_LAPTOP, replace(_LAPTOP, batch=120, optimizer=px.optim.sgd(0.05, 0.9), rounds=120)),
    # crude: dissertation, section 6.3; subtle: shares of 8 again, which no table has
    "paper": Setting(_PAPER, replace(_PAPER, batch=360, optimizer=px.optim.sgd(0.05, 0.9), rounds=1000), f=5, groups=5),
}


@recipe("robust-mnist")
def robust_mnist(scale: str) -> dict[str, Run]:
    """MNIST with LeNet: every robust rule against reversed gradients, a constant, and ALIE with z = 1."""
    setting = SETTINGS[scale]
    f = setting.f

    def attacked(size: Size, attack: Stage, *rule: Stage, gate: Gate = GATE) -> Run:
        scheme = px.chain(attack, px.gather(px.codecs.dense(), gate=gate), *rule)
        # the favourable case: no two of them in one vote group
        return size.run(scheme, byzantine=px.adversary.evenly_spaced(f))

    reverse, constant = px.attacks.reverse(c=100), px.attacks.constant(value=-100)
    # z from n and f would be 0.2 here, which harms nobody; the dissertation fixes 1
    alie = px.attacks.alie(z=1.0)
    vote = px.coding.group_vote(r=3, placement=px.coding.in_order())
    rules: dict[str, tuple[Stage, ...]] = {
        "median": (px.aggregators.median(),),
        "trimmed mean": (px.aggregators.trimmed_mean(f=f),),
        "krum": (px.aggregators.krum(f=f),),
        "multi-krum": (px.aggregators.multi_krum(f=f),),
        "bulyan": (px.aggregators.bulyan(f=f),),
        "geometric median": (px.aggregators.geometric_median(),),
        "group vote r=3": (vote, px.aggregators.mean()),
        "DETOX": (
            vote,
            px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=setting.groups),
        ),
    }

    def panel(name: str, size: Size, attack: Stage) -> dict[str, Run]:
        plain = {f"{name}: mean": attacked(size, attack, px.aggregators.mean(), gate=OPEN)}
        return plain | {f"{name}: {label}": attacked(size, attack, *rule) for label, rule in rules.items()}

    def free(size: Size, attack: Stage) -> Run:
        return replace(attacked(size, attack, px.aggregators.mean(), gate=OPEN), byzantine=px.adversary.none())

    return {
        "no attack: mean": free(setting.crude, reverse),
        **panel("reverse gradient", setting.crude, reverse),
        **panel("constant", setting.crude, constant),
        "ALIE, small shares: mean, no attack": free(setting.subtle, alie),
        **panel("ALIE, small shares", setting.subtle, alie),
    }

# SPDX-License-Identifier: Apache-2.0
"""The first thing to run: which rules survive three liars among fifteen."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
from phalanx.core.gate import Gate
from phalanx.core.stage import Stage
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run

GATE = px.gate()
# after 200 rounds Krum, which learns from one worker's 32 samples, is more than 3 points behind in 1 of 7 seeds
ROUNDS = {"smoke": 40, "laptop": 300, "paper": 300}


@recipe("quickstart")
def quickstart(scale: str) -> dict[str, Run]:
    """Digits, 15 workers of which 3 send reversed gradients: the mean breaks, robust rules do not.

    The vote meets the favourable case, no two of the 3 in one group. Groups at random lose one in 41 % of draws.
    """

    def attacked(*rule: Stage, gate: Gate = GATE) -> Run:
        phase = px.Phase(
            work=px.training.gradient(batch=480),
            scheme=px.chain(px.attacks.reverse(c=100), px.gather(px.codecs.dense(), gate=gate), *rule),
            # with momentum, or a larger step on a smaller batch, Krum and the median fall behind on these data
            optimizer=px.optim.sgd(lr=0.1),
            rounds=ROUNDS[scale],
        )
        return px.Run(
            data=px.data.digits(),
            model=px.models.mlp(hidden=(64,)),
            phases=(phase,),
            byzantine=px.adversary.evenly_spaced(3),
            evaluate_every=10,
        )

    return {
        "mean, no attack": replace(attacked(px.aggregators.mean()), byzantine=px.adversary.none()),
        # what plain data parallel training does: any finite row counts
        "mean": attacked(px.aggregators.mean(), gate=px.gate(limit=1e38)),
        "median": attacked(px.aggregators.median()),
        "trimmed mean": attacked(px.aggregators.trimmed_mean(f=3)),
        "krum": attacked(px.aggregators.krum(f=3)),
        "geometric median": attacked(px.aggregators.geometric_median()),
        "group vote r=3": attacked(px.coding.group_vote(r=3, placement=px.coding.in_order()), px.aggregators.mean()),
    }

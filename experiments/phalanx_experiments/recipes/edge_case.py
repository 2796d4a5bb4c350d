# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors against defences: task 2 of chapter 8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import phalanx as px
import phalanx_experiments as pe
from phalanx.data.dataset import Data
from phalanx.federated.local_training import LocalTraining
from phalanx.models.model import Model
from phalanx.tools.redteam.setting import ATTACKS, Defence, Setting, attacked, standard
from phalanx.tools.report.backdoors import backdoor_tables, plot_backdoors
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run

# rules worth a try against an attacker that comes in every round, and the plain mean beside them
OFTEN = (
    "FedAvg",
    "tight norm clipping",
    "trimmed mean",
    "median",
    "Multi-Krum",
    "Krum",
    "NNM + trimmed mean",
    "FLAME",
    "FLTrust, 100 samples",
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """Section 8.5.1: what the rules of a task and the attackers who know them are set to.

    Args:
        bound: of norm-difference clipping.
        noises: standard deviations of weak DP.
        ball: radius of PGD against clipping, weak DP and no rule.
        hidden: the radius against other rules, by their names.
        decay: factor on `hidden` after every round.
        replaced: the radius with replacement against clipping, weak DP and no rule.
        replaced_hidden: the radius with replacement against other rules.
    """

    bound: float
    noises: tuple[float, ...]
    ball: float
    hidden: Mapping[str, float]
    decay: float
    replaced: float
    replaced_hidden: float

    def rules(self, setting: Setting) -> dict[str, Defence]:
        """The rules of `standard` with the published constants; those of later papers keep their own."""
        clip, mean = px.clip(self.bound), px.aggregators.mean()
        bounded = {"FedAvg": mean, "norm clipping": px.chain(clip, mean)}
        for std in self.noises:
            name = "weak DP" if std == self.noises[0] else f"weak DP, {std:g}"
            bounded[name] = px.chain(clip, mean, px.noise(std))
        rules = standard(setting.norm, setting.workers)
        rules |= {name: Defence(rule, self.ball, replaced=self.replaced) for name, rule in bounded.items()}
        rules["Multi-Krum"] = replace(rules["Multi-Krum"], rule=px.aggregators.multi_krum(f=1, m=setting.clients - 1))
        for name, radius in self.hidden.items():
            rules[name] = replace(rules[name], radius=radius, decay=self.decay, replaced=self.replaced_hidden)
        return rules


# by task
PUBLISHED = {
    1: Published(
        bound=2.0,
        noises=(0.005,),
        ball=2.0,
        hidden={"Krum": 0.5, "Multi-Krum": 1.5, "RFA": 1.5},
        decay=0.998,
        replaced=0.1,
        replaced_hidden=0.083,
    ),
    2: Published(
        bound=2.0,
        noises=(0.002, 0.001),
        ball=1.5,
        hidden={"Krum": 1.0, "Multi-Krum": 1.0, "RFA": 1.0},
        decay=0.998,
        replaced=0.3,
        replaced_hidden=0.25,
    ),
    4: Published(
        bound=1.5,
        noises=(0.002,),  # the text has none
        ball=1.0,
        hidden={"Krum": 1.0, "Multi-Krum": 1.0, "RFA": 1.0},
        decay=1.0,
        replaced=0.01,
        replaced_hidden=0.01,
    ),
}


def local(lr: float, epochs: int, batch: int) -> LocalTraining:
    """How the clients of these settings train."""
    optimizer = px.optim.sgd(lr, momentum=0.9, weight_decay=1e-4, schedule=px.optim.decay(0.998))
    return px.federated.local_training(optimizer, epochs=epochs, batch=batch)


def started(data: Data, model: Model, rounds: int, batch: int = 32, lr: float = 0.05) -> Model:
    """A model that one worker has trained on some data; each seed has a model of its own."""
    phase = px.Phase(px.training.gradient(batch), px.reduce(px.codecs.dense()), px.optim.sgd(lr, momentum=0.9), rounds)
    first = px.Run(data, model, (phase,), workers=1, evaluate_every=rounds, checkpoint_every=rounds)
    return px.training.pretrained(first, drawn=True)


def setting(scale: str) -> Setting:
    """Task 2 at a scale; smoke uses the digits of scikit-learn and their rare styles."""
    if scale == "smoke":
        return Setting(
            px.data.digits(),
            px.backdoors.rare_styles(),
            started(px.data.digits(), px.models.mlp((32,)), 60),
            workers=41,
            clients=10,
            local=local(0.1, 2, 10),
            epochs=4,
            norm=0.8,
            rounds=8,
            every=2,
            often=8,
            clean=30,
        )
    if scale == "laptop":
        small = px.models.lenet(channels=(16, 32), hidden=128)
        return Setting(
            px.data.mnist(test=2000),
            pe.ardis(),
            started(px.data.mnist(train=1500, test=2000), small, 141),
            workers=1001,
            clients=10,
            local=local(0.02, 2, 32),
            epochs=10,
            norm=0.25,
            rounds=100,
            every=10,
            often=40,
            evaluate_every=4,
        )
    # table 8.1, on MNIST in place of EMNIST's digits
    return Setting(
        px.data.mnist(),
        pe.ardis(),
        started(px.data.mnist(train=1500), px.models.lenet(), 141),
        by_examples=True,
        workers=3384,
        clients=30,
        local=local(0.1, 5, 32),
        epochs=5,
        norm=0.75,
        rounds=500,
        every=10,
        often=100,
        evaluate_every=10,
    )


@recipe("edge-case-mnist", plot=plot_backdoors, tables=backdoor_tables)
def edge_case_mnist(scale: str) -> dict[str, Run]:
    """Task 2: sevens of another handwriting are labelled as ones; fifteen rules and attackers of growing knowledge."""
    terms = setting(scale)
    rules = PUBLISHED[2].rules(terms) if scale == "paper" else standard(terms.norm, terms.workers)
    runs: dict[str, Run] = {}
    for attack, plan in ATTACKS.items():
        tried: dict[str, Defence] = rules
        if plan is not None and plan.often:
            tried = {} if scale == "smoke" else {name: rules[name] for name in OFTEN}
        runs |= {f"{attack}: {name}": attacked(terms, rule, plan) for name, rule in tried.items()}
    return runs

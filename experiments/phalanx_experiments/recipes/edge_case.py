# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors against defences: task 2 of chapter 8."""

from __future__ import annotations

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
    # table 8.1, on MNIST in place of EMNIST's digits; the published thresholds
    return Setting(
        px.data.mnist(),
        pe.ardis(),
        started(px.data.mnist(train=1500), px.models.lenet(), 141),
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
    mine = setting(scale)
    rules = standard(mine.norm, mine.workers)
    made: dict[str, Run] = {}
    for attack, plan in ATTACKS.items():
        tried: dict[str, Defence] = rules
        if plan is not None and plan.often:
            tried = {} if scale == "smoke" else {name: rules[name] for name in OFTEN}
        made |= {f"{attack}: {name}": attacked(mine, rule, plan) for name, rule in tried.items()}
    return made

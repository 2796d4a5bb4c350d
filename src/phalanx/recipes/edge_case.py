# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors against defences: chapter 8."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.backdoors.edges import EdgeCases
from phalanx.data.dataset import Data
from phalanx.federated.local_training import LocalTraining
from phalanx.models.model import Model
from phalanx.phase import Phase, Run
from phalanx.recipes.recipe import recipe
from phalanx.report.backdoors import backdoor_tables, plot_backdoors
from phalanx.stage import Stage

ATTACKER = 0  # the adversary's worker


@dataclass(frozen=True)
class Size:
    """What a scale changes.

    Args:
        workers: honest ones and the attacker, of whom `clients` take part in a round.
        local: how honest clients train.
        foe_epochs: of the attacker where it knows the protocol.
        norm: of an honest client's change, the median, of which balls and thresholds are multiples.
        before: rounds without an attack, behind which the model is good.
        rounds: with attacks.
        every: rounds from one attack to the next.
        clean: ordinary examples in the attacker's mixture.
    """

    data: Data
    edges: EdgeCases
    model: Model
    workers: int
    clients: int
    local: LocalTraining
    foe_epochs: int
    norm: float
    before: int
    rounds: int
    every: int
    clean: int = 0
    evaluate_every: int = 2


def _local(lr: float, epochs: int, batch: int) -> LocalTraining:
    optimizer = px.sgd(lr, momentum=0.9, weight_decay=1e-4, schedule=px.decay(0.998))
    return px.local_training(optimizer, epochs=epochs, batch=batch)


SIZES = {
    "smoke": Size(
        px.digits(),
        px.rare_styles(),
        px.mlp((32,)),
        workers=40,
        clients=10,
        local=_local(0.1, 2, 10),
        foe_epochs=4,
        norm=1.0,
        before=4,
        rounds=4,
        every=2,
        clean=30,
    ),
    "laptop": Size(
        px.mnist(test=2000),
        px.ardis(),
        px.lenet(channels=(16, 32), hidden=128),
        workers=1001,
        clients=10,
        local=_local(0.02, 2, 32),
        foe_epochs=10,
        norm=0.25,
        before=40,
        rounds=60,
        every=10,
    ),
    # task 2 of table 8.1, on MNIST in place of EMNIST's digits; the published thresholds
    "paper": Size(
        px.mnist(),
        px.ardis(),
        px.lenet(),
        workers=3384,
        clients=30,
        local=_local(0.1, 5, 32),
        foe_epochs=5,
        norm=0.75,
        before=100,
        rounds=500,
        every=10,
        evaluate_every=10,
    ),
}


def defences(size: Size) -> dict[str, tuple[Stage, float]]:
    """Rules behind the wire, and the radius in which an attacker who knows the rule trains."""
    norm, f = size.norm, 1
    return {
        "FedAvg": (px.mean(), 2 * norm),
        "norm clipping": (px.chain(px.clip(2 * norm), px.mean()), 2 * norm),
        "weak DP": (px.chain(px.clip(2 * norm), px.mean(), px.noise(0.002)), 2 * norm),
        "RFA": (px.geometric_median(), norm),
        "trimmed mean": (px.trimmed_mean(f=f), norm),
        "median": (px.median(), norm),
        "Multi-Krum": (px.multi_krum(f=f), norm),
        "Krum": (px.krum(f=f), 0.4 * norm),
        "NNM + trimmed mean": (px.chain(px.nnm(f=f), px.trimmed_mean(f=f)), norm),
        "centered clipping": (px.centered_clip(tau=norm), norm),
        "FoolsGold": (px.foolsgold(), norm),
        "FLAME": (px.flame(), norm),
    }


def _phases(size: Size, rule: Stage, attack: str, radius: float) -> tuple[Phase, Phase]:
    """The rounds before the first attack, and those with attacks; without any, honest clients are the same."""
    # the bounded weight of one client among those of a round
    stages = [px.replacement(float(size.clients))] if attack == "PGD + replacement" else []
    foe = size.local
    if attack != "black-box":
        ball = px.ball(radius / size.clients if stages else radius)
        foe = replace(size.local, epochs=size.foe_epochs, ball=ball)
    adversary = px.poisoned(foe, size.edges, size.data, clean=size.clean)
    never = size.before + size.rounds
    calm = px.infiltrated(size.clients, (ATTACKER,), first=never)
    turns = replace(calm, every=size.every, first=never if attack == "none" else size.before)
    quiet = replace(px.fedavg(size.local, size.before, rule=rule), clients=calm)
    scheme = px.chain(*stages, quiet.scheme)
    return quiet, replace(quiet, scheme=scheme, rounds=size.rounds, clients=turns, adversary=adversary)


def attacked(size: Size, rule: Stage, attack: str, radius: float) -> Run:
    """Training under a rule, first without and then with an attack."""
    return px.run(
        px.joined(size.data, size.edges),
        size.model,
        _phases(size, rule, attack, radius),
        workers=size.workers,
        byzantine=px.fixed((ATTACKER,)),
        partition=px.dirichlet(0.5),
        evaluate_every=size.evaluate_every,
        exams=(px.backdoor(size.edges, size.data),),
    )


@recipe("edge-case-mnist", plot=plot_backdoors, tables=backdoor_tables)
def edge_case_mnist(scale: str) -> dict[str, Run]:
    """Task 2: sevens of another handwriting are called ones; no attack and three attacks against twelve rules."""
    size = SIZES[scale]
    made: dict[str, Run] = {}
    for name, (rule, radius) in defences(size).items():
        for attack in ("none", "black-box", "PGD", "PGD + replacement"):
            made[f"{attack}: {name}"] = attacked(size, rule, attack, radius)
    return made

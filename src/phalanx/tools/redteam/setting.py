# SPDX-License-Identifier: Apache-2.0
"""A federated setting under attack: what is learned, who attacks how, and what stands against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import phalanx as px
from phalanx.backdoors.edges import EdgeCases
from phalanx.core.stage import Stage
from phalanx.core.wire_stage import WireStage, stages_of
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.data.partition import Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.models.model import Model
from phalanx.training.client_sampler import ClientSampler
from phalanx.training.evaluator import Evaluator
from phalanx.training.phase import Phase, Run

ATTACKER = 0  # the adversary's worker
NONE = "none"


@dataclass(frozen=True)
class Setting:
    """What all cells of a grid share.

    Args:
        data: before honest clients are given edge cases.
        model: that the first attacked round begins with; `pretrained(...)` makes it a good one.
        workers: honest ones and the attacker, of whom `clients` take part in a round.
        local: how honest clients train.
        epochs: of the attacker where it knows the protocol.
        norm: of an honest client's change, the median, of which balls and thresholds are multiples.
        rounds: of a run whose attacker comes every `every` rounds.
        often: rounds of a run whose attacker comes in each.
        clean: ordinary examples in the attacker's mixture.
        amount: edge cases in it; None takes all.
        mix: whether it holds the ordinary examples that were published with the edge cases, too.
        held: data with the edge cases that honest clients hold; None is `data` joined with none of them.
        partition: who has what of `held`.
        augment: of all clients' examples.
        evaluators: besides that of the backdoor.
        by_examples: whether replacement multiplies a change by n_S / n_i, the examples of a round over the attacker's,
            as published, or by the clients of a round.
    """

    data: Data
    edges: EdgeCases
    model: Model
    workers: int
    clients: int
    local: LocalTraining
    epochs: int
    norm: float
    rounds: int
    every: int
    often: int
    clean: int = 0
    amount: int | None = None
    mix: bool = True
    held: Data | None = None
    partition: Partition = field(default_factory=lambda: px.data.dirichlet(0.5))
    evaluate_every: int = 2
    precision: str = "float32"
    augment: Augment | None = None
    evaluators: tuple[Evaluator, ...] = ()
    by_examples: bool = False


@dataclass(frozen=True)
class Defence:
    """A rule behind the wire.

    Args:
        radius: of the ball in which an attacker who knows the rule trains.
        root: samples of all labels that the server has, as a worker of its own who takes part in every round; its
            number is the setting's `workers`.
        decay: factor on the radius after every round.
        replaced: the radius for an attacker who multiplies its change afterwards; None divides `radius` by the clients.
    """

    rule: Stage
    radius: float
    root: int = 0
    decay: float = 1.0
    replaced: float | None = None


@dataclass(frozen=True)
class Plan:
    """How the adversary goes about it.

    Args:
        inside: trains within a ball that the defence lets pass, longer than honest clients do.
        boosted: sends its change times the clients of a round, or times n_S / n_i, from a smaller ball.
        knows: fits what it sends to the rule and to the honest rows, which it sees.
        every: rounds from one attack to the next; None is the setting's.
        pool: attackers among all workers, who come when they are drawn, in place of the one who comes in turn.
        until: rounds behind which no attack comes any more; None goes on to the end.
    """

    inside: bool = False
    boosted: bool = False
    knows: bool = False
    every: int | None = None
    pool: int = 0
    until: int | None = None

    @property
    def often(self) -> bool:
        """Whether an attacker comes in every round."""
        return self.every == 1


ATTACKS: Mapping[str, Plan | None] = {
    NONE: None,
    "black-box": Plan(),
    "PGD": Plan(inside=True),
    "PGD + replacement": Plan(inside=True, boosted=True),
    "adaptive": Plan(inside=True, knows=True),
    "black-box, every round": Plan(every=1),
    "PGD, every round": Plan(inside=True, every=1),
    "adaptive, every round": Plan(inside=True, knows=True, every=1),
}


def standard(norm: float, workers: int, f: int = 1) -> dict[str, Defence]:
    """The rules that every setting is tried with.

    Args:
        norm: of an honest client's change, the median.
        workers: of the setting.
        f: attackers of a round.
    """
    return {
        "FedAvg": Defence(px.aggregators.mean(), 10 * norm),
        "norm clipping": Defence(px.chain(px.clip(2 * norm), px.aggregators.mean()), 2 * norm),
        "tight norm clipping": Defence(px.chain(px.clip(norm), px.aggregators.mean()), norm),
        "adaptive norm clipping": Defence(
            px.chain(px.aggregators.adaptive_clip("median"), px.aggregators.mean()), norm
        ),
        "weak DP": Defence(px.chain(px.clip(2 * norm), px.aggregators.mean(), px.noise(0.002)), 2 * norm),
        "RFA": Defence(px.aggregators.geometric_median(), 2 * norm),
        "trimmed mean": Defence(px.aggregators.trimmed_mean(f=f), norm),
        "median": Defence(px.aggregators.median(), norm),
        "Multi-Krum": Defence(px.aggregators.multi_krum(f=f), norm),
        "Krum": Defence(px.aggregators.krum(f=f), 0.4 * norm),
        "NNM + trimmed mean": Defence(px.chain(px.aggregators.nnm(f=f), px.aggregators.trimmed_mean(f=f)), norm),
        "centered clipping": Defence(px.aggregators.centered_clip(tau=norm), norm),
        "FoolsGold": Defence(px.aggregators.foolsgold(), 10 * norm),
        "FLAME": Defence(px.aggregators.flame(), norm),
        "FLTrust, 100 samples": Defence(px.aggregators.fltrust(root=workers), norm, root=100),
    }


def attacked(setting: Setting, defence: Defence, plan: Plan | None) -> Run:
    """Training under a defence while the adversary carries out a plan; without one, honest clients are the same."""
    held = setting.held or px.backdoors.with_edge_cases(setting.data, setting.edges)
    return px.Run(
        held,
        setting.model,
        (_phase(setting, defence, plan),),
        workers=setting.workers + bool(defence.root),
        byzantine=px.adversary.random(plan.pool)
        if plan is not None and plan.pool
        else px.adversary.workers((ATTACKER,)),
        partition=px.data.reserve(setting.partition, defence.root) if defence.root else setting.partition,
        augment=setting.augment,
        precision=setting.precision,  # type: ignore[arg-type]
        evaluate_every=setting.evaluate_every,
        observers=(px.training.norms(arrived=True),),
        evaluators=(px.backdoors.backdoor(setting.edges, setting.data), *setting.evaluators),
    )


def _phase(setting: Setting, defence: Defence, plan: Plan | None) -> Phase:
    rounds = setting.often if plan is not None and plan.often else setting.rounds
    honest = px.federated.fedavg(setting.local, rounds, rule=defence.rule)
    calm = px.federated.with_attackers(setting.clients, (ATTACKER,), every=setting.every, first=rounds)
    if plan is None:
        return replace(honest, clients=_with_root(calm, defence))
    local = setting.local
    if plan.inside:
        radius = defence.radius
        if plan.boosted:
            radius = radius / setting.clients if defence.replaced is None else defence.replaced
        local = replace(local, epochs=setting.epochs, ball=px.federated.ball(radius, decay=defence.decay))
    foe = px.backdoors.poisoned(local, setting.edges, setting.data, setting.clean, setting.amount, setting.mix)
    clients: ClientSampler = replace(calm, every=plan.every or setting.every, first=0, rounds=plan.until)
    if plan.pool:
        clients = px.federated.uniform(setting.clients)
    scheme = smuggled(honest.scheme, defence.rule, plan, None if setting.by_examples else float(setting.clients))
    return replace(honest, scheme=scheme, clients=_with_root(clients, defence), adversary=foe)


def smuggled(scheme: Stage, rule: Stage, plan: Plan, boost: float | None) -> Stage:
    """The scheme with what the adversary does to its change before the wire.

    Args:
        rule: behind the wire.
        boost: what replacement multiplies by; None is n_S / n_i.
    """
    stages = stages_of(scheme)
    wire = place_of_wire(stages)
    attacks: list[Stage] = [px.attacks.replacement(boost)] if plan.boosted else []
    attacks += [px.attacks.adaptive(rule)] if plan.knows else []
    return px.chain(*stages[:wire], *attacks, *stages[wire:])


def place_of_wire(stages: Sequence[Stage]) -> int:
    """Where in a chain rows are sent."""
    return next(i for i, stage in enumerate(stages) if isinstance(stage, WireStage))


def _with_root(clients: ClientSampler, defence: Defence) -> ClientSampler:
    return px.federated.with_fixed(clients) if defence.root else clients

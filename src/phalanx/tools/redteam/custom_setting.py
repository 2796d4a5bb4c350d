# SPDX-License-Identifier: Apache-2.0
"""A federated setting of one's own under attack: one of its clients turns on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import phalanx as px
from phalanx.attacks.adversary import NoAdversary
from phalanx.backdoors.edges import EdgeCases
from phalanx.backdoors.split_edge_cases import SplitEdgeCases
from phalanx.core.attack import Attack
from phalanx.core.expression import require
from phalanx.core.stage import Stage, chain
from phalanx.core.wire_stage import WireStage, stages_of
from phalanx.data.partition import Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.tools.redteam.grid import fairly
from phalanx.tools.redteam.setting import ATTACKER, ATTACKS, Defence, Plan, place_of_wire, smuggled, standard
from phalanx.training.client_sampler import AllClients, ClientSampler
from phalanx.training.phase import Phase, Run
from phalanx.training.trainer import Trainer

YOURS = "yours"
LONGER = 2  # times the honest epochs that an attacker trains who knows the protocol
CLEAN = 2  # ordinary examples in the attacker's mixture for each edge case
TESTS = 20  # looks at the model in a run, at least
TENTH = 10  # of the clients hold the edge cases that honest ones have


@dataclass(frozen=True)
class Terms:
    """How a setting of one's own is attacked.

    Args:
        edges: what the attacker calls by the wrong name.
        every: rounds from one attack to the next, where clients are drawn.
        attacker: share of the edge cases that the attacker has, in (0, 1]; a tenth of the honest clients hold the rest.
        norm: of an honest client's change, the median, of which balls and thresholds are multiples; measured when None.
    """

    edges: EdgeCases
    every: int = 10
    attacker: float = 0.5
    norm: float | None = None

    def __post_init__(self) -> None:
        require(self.every >= 1, f"--every takes rounds >= 1 between two attacks, got {self.every}")
        require(0 < self.attacker <= 1, f"--attacker-share lies in (0, 1], got {self.attacker}")
        require(self.norm is None or self.norm > 0, f"--norm takes a number > 0, got {self.norm}")


@dataclass(frozen=True)
class Own:
    """The grid of a setting.

    Args:
        runs: by "attack: rule"; the setting's own rule is `YOURS`.
        norm: that balls and thresholds are multiples of.
        left_out: a sentence for each rule that the setting cannot carry.
    """

    runs: dict[str, Run]
    norm: float
    left_out: tuple[str, ...]


def own_grid(run: Run, terms: Terms) -> Own:
    """No attack and attackers of growing knowledge against a setting's own rule and the standard ones in its place.

    Worker 0 is the attacker. Phases before the last one are done once, honestly, and every run begins with their model.

    Raises:
        ValueError: the run is no federated setting without an attack.
    """
    check(run)
    begun = _begun(run)
    edges, partition = _shared(begun, terms)
    norm = terms.norm or typical_norm(begun)
    base = fairly(
        replace(
            begun,
            data=px.backdoors.with_edge_cases(begun.data, edges),
            partition=partition,
            byzantine=px.adversary.workers((ATTACKER,)),
            evaluate_every=min(begun.evaluate_every, max(1, begun.rounds // TESTS)),
            evaluators=(*begun.evaluators, px.backdoors.backdoor(edges, begun.data)),
        )
    )
    known, own_rule = standard(norm, run.workers), behind(begun.phases[0].scheme)
    radius = next((rule.radius for rule in known.values() if rule.rule == own_rule), norm)
    rules = {YOURS: Defence(own_rule, radius), **known}
    runs: dict[str, Run] = {}
    left_out = []
    for name, rule in rules.items():
        tried = {
            f"{attack}: {name}": _attacked(base, begun, edges, terms, rule, plan)
            for attack, plan in _plans(begun).items()
        }
        try:
            for each in tried.values():
                each.check()
        except ValueError as error:
            require(name != YOURS, f"the setting cannot be attacked: {error}")
            left_out.append(f"{name}: {error}")
            continue
        runs |= tried
    return Own(runs, norm, tuple(left_out))


def check(run: Run) -> None:
    """Raises ValueError unless a run is a federated setting to which an attacker can be added."""
    phase = run.phases[-1]
    refused = "cannot be attacked: "
    require(
        run.task.has_classes,
        f"the run {refused}backdoors are wrong labels, and {run.task!r} has no classes; put an attack such as alie() "
        "into its scheme, and compare such runs with phalanx compare",
    )
    honest = isinstance(run.byzantine, NoAdversary) and all(each.adversary is None for each in run.phases)
    attacks = [stage for each in run.phases for stage in stages_of(each.scheme) if isinstance(stage, Attack)]
    require(honest and not attacks, f"the run {refused}it has an attacker already; leave byzantine=... and attacks out")
    local = phase.work
    ok = isinstance(local, LocalTraining) and local.sends == "change" and local.ball is None
    require(
        ok, f"the run {refused}its last phase needs clients with local_training(...) that send changes, got {local!r}"
    )
    require(phase.surgery is None, f"the run {refused}its last phase has a surgery, got {phase.surgery!r}")
    alone = phase.scheme.assign(run.workers) is None
    require(
        alone, f"the run {refused}several workers compute the same in {phase.scheme!r}, and an attacker is one client"
    )
    wired = any(isinstance(stage, WireStage) for stage in stages_of(phase.scheme))
    require(wired, f"the run {refused}{phase.scheme!r} sums changes on the way; write chain(gather(dense()), mean())")
    count = phase.clients.count(run.workers)
    enough = isinstance(phase.clients, AllClients) or count < run.workers
    require(
        enough and run.workers >= 2,
        f"the run {refused}it needs a client beside the attacker for every place; {count} of {run.workers} take part",
    )
    run.check()


def behind(scheme: Stage) -> Stage:
    """The rule: what stands behind the wire."""
    stages = stages_of(scheme)[len(_before(scheme)) :]
    return stages[0] if len(stages) == 1 else chain(*stages)


def typical_norm(run: Run) -> float:
    """The median length of the clients' changes in the first round."""
    trainer = Trainer(run)
    chosen = run.phases[0].clients.sample(0, run.workers, run.seed)
    rows, _ = trainer.compute_rows(0, chosen)
    stepped = rows.rows[:, : rows.layout.stepped].double()
    norm = median(stepped.norm(dim=1).tolist())
    require(0 < norm < float("inf"), f"the changes of honest clients have a median length of {norm}; give --norm")
    return float(f"{norm:.3g}")


def _begun(run: Run) -> Run:
    """The run without the phases before the last one, beginning with the model that they make."""
    if len(run.phases) == 1:
        return run
    before = px.training.pretrained(replace(run, phases=run.phases[:-1], evaluators=(), observers=()))
    return replace(run, model=before, phases=run.phases[-1:])


def _shared(run: Run, terms: Terms) -> tuple[EdgeCases, Partition]:
    """The edge cases with the honest clients' part, and who has what."""
    edges = terms.edges
    if terms.attacker < 1 and not isinstance(edges, SplitEdgeCases):
        have = edges.load(run.data.load())
        total = len(have) if have.origins is None else len(have.origins.unique())
        of_attacker = min(total, max(1, round(terms.attacker * total)))
        if of_attacker < total:
            edges = px.backdoors.split_edge_cases(edges, ratio=of_attacker / total, attacker=of_attacker)
    held = edges.load(run.data.load()).held
    if held is None:
        return edges, run.partition
    return edges, px.backdoors.assign_added(
        run.partition, clients=max(1, min(len(held[1]), run.workers // TENTH)), drawn=True
    )


def _plans(run: Run) -> dict[str, Plan | None]:
    """The attacks; where everybody takes part the attacker always does."""
    if not isinstance(run.phases[0].clients, AllClients):
        return dict(ATTACKS)
    return {name: plan for name, plan in ATTACKS.items() if plan is None or not plan.often}


def _attacked(base: Run, begun: Run, edges: EdgeCases, terms: Terms, rule: Defence, plan: Plan | None) -> Run:
    phase = begun.phases[0]
    count = phase.clients.count(begun.workers)
    scheme = chain(*_before(phase.scheme), rule.rule)
    if plan is not None:
        foe = _foe(phase, begun, edges, rule.radius / count if plan.boosted else rule.radius, plan)
        phase = replace(phase, adversary=foe)
        scheme = smuggled(scheme, rule.rule, plan, float(count))
    clients = _turns(phase, count, terms.every, plan)
    run = replace(
        base,
        phases=(replace(phase, scheme=scheme, clients=px.federated.with_fixed(clients) if rule.root else clients),),
    )
    if rule.root:
        # the server plays a worker of its own
        run = replace(run, workers=run.workers + 1, partition=px.data.reserve(run.partition, rule.root))
    return run


def _turns(phase: Phase, count: int, every: int, plan: Plan | None) -> ClientSampler:
    """Who takes part: the attacker in its rounds, and the same honest clients in the others with and without it."""
    if isinstance(phase.clients, AllClients):
        return phase.clients
    if plan is None:
        return px.federated.with_attackers(count, (ATTACKER,), every=every, first=phase.rounds)
    return px.federated.with_attackers(count, (ATTACKER,), every=plan.every or every)


def _foe(phase: Phase, run: Run, edges: EdgeCases, radius: float, plan: Plan):
    local = phase.work
    assert isinstance(local, LocalTraining)
    if plan.inside:
        longer = {"steps": LONGER * local.steps} if local.steps is not None else {"epochs": LONGER * local.epochs}
        local = replace(local, ball=px.federated.ball(radius), **longer)
    amount = len(edges.load(run.data.load()))
    clean = min(CLEAN * amount, len(run.data.load().train_y))
    return px.backdoors.poisoned(local, edges, run.data, clean=clean)


def _before(scheme: Stage) -> Sequence[Stage]:
    """The stages up to the wire."""
    stages = stages_of(scheme)
    return stages[: place_of_wire(stages) + 1]

# SPDX-License-Identifier: Apache-2.0
"""A run in words: who attacks, with what, how often, and what it knows."""

from __future__ import annotations

from phalanx.attacks.adaptive import Adaptive
from phalanx.attacks.replacement import Replacement
from phalanx.backdoors.poisoned import Poisoned
from phalanx.backdoors.with_edge_cases import WithEdgeCases
from phalanx.core.wire_stage import WireStage, stages_of
from phalanx.training.client_sampler import AllClients, WithAttackers, WithFixed
from phalanx.training.phase import Phase, Run


def situation(run: Run) -> list[tuple[str, str]]:
    """What honest clients do, as pairs of a heading and words."""
    phase, data = run.phases[-1], run.data
    apart = [("edge cases", repr(data.edges))] if isinstance(data, WithEdgeCases) else []
    return [
        ("data", repr(data.data if isinstance(data, WithEdgeCases) else data)),
        *apart,
        ("who has what", repr(run.partition)),
        ("model", repr(run.model)),
        ("clients", f"{run.workers}, of whom {phase.clients.count(run.workers)} take part in a round"),
        ("what a client does", repr(phase.work)),
    ]


def adversary(run: Run) -> list[str]:
    """What the attacker does, a sentence each; nothing for a run without one."""
    phase = run.phases[-1]
    if phase.adversary is None:
        return []
    said = [_often(phase)]
    foe = phase.adversary
    if isinstance(foe, Poisoned):
        edges = foe.edges.load(foe.data.load())
        amount = len(edges) if foe.amount is None else foe.amount
        said.append(
            f"it trains on {amount} edge cases under the label {edges.target} and {foe.clean} ordinary examples"
        )
        if foe.local.ball is None:
            said.append("it knows nothing of the rule, and trains and sends as honest clients do")
        else:
            passes = f"{foe.local.steps} steps" if foe.local.steps is not None else f"{foe.local.epochs} epochs"
            said.append(
                f"it trains for {passes} and keeps its weights within {foe.local.ball.radius:g} of the global model's"
            )
    for stage in stages_of(phase.scheme):
        if isinstance(stage, WireStage):
            break
        if isinstance(stage, Replacement):
            factor = "the clients of the round, by examples" if stage.boost is None else f"{stage.boost:g}"
            said.append(f"it sends its change times {factor}")
        if isinstance(stage, Adaptive):
            said.append("it knows the rule, sees what honest clients send, and fits its own length to both")
    return said


def rule(run: Run) -> str:
    """The stages after the wire, as text."""
    stages = stages_of(run.phases[-1].scheme)
    place = next((i for i, stage in enumerate(stages) if isinstance(stage, WireStage)), -1)
    return ", ".join(map(repr, stages[place + 1 :]))


def _often(phase: Phase) -> str:
    clients = phase.clients.others if isinstance(phase.clients, WithFixed) else phase.clients
    if isinstance(clients, WithAttackers):
        count = len(clients.attackers)
        turn = "in every round" if clients.every == 1 else f"in one round of {clients.every}"
        return f"{count} client{'s' if count > 1 else ''} of {clients.clients} in a round, {turn}"
    return "in every round, as all clients" if isinstance(clients, AllClients) else f"whenever drawn by {clients!r}"

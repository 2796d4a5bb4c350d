# SPDX-License-Identifier: Apache-2.0
"""What decides how well a backdoor works: who has edge cases, how often attackers take part, what they mix in."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
from phalanx.tools.redteam.setting import NONE, Defence, Plan, Setting, attacked, standard
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.backdoor_sweep import plot_sweep, sweep_tables
from phalanx_experiments.recipes.edge_case import setting

SHARES = (1.0, 0.5, 0.1)  # of the edge cases, in the attacker's hands
ATTACK = "black-box"


def shared_out(terms: Setting, total: int, ratio: float, holders: int) -> Setting:
    """A setting of `total` edge cases: the attacker has a part, and honest clients the others with true labels."""
    of_attacker = max(1, int(ratio * total))
    edges = px.backdoors.split_edge_cases(terms.edges, ratio, attacker=of_attacker)
    if ratio == 1.0:
        return replace(terms, edges=edges)
    # none has less than one
    partition = px.backdoors.assign_added(terms.partition, min(holders, round(of_attacker * (1 - ratio) / ratio)))
    return replace(terms, edges=edges, held=px.backdoors.with_edge_cases(terms.data, edges), partition=partition)


def mixed(terms: Setting, total: int, part: float) -> Setting:
    """An attacker with `total` examples, a part of which are edge cases."""
    edge = round(part * total)
    return replace(terms, amount=edge, clean=total - edge, mix=False)


@recipe("edge-case-mnist-sweeps", plot=plot_sweep, tables=sweep_tables)
def edge_case_mnist_sweeps(scale: str) -> dict[str, Run]:
    """Task 2: shares of the edge cases at honest clients, frequencies and pools of attackers, mixtures, persistence."""
    terms = setting(scale)
    rules = standard(terms.norm, terms.workers)
    plain, clipped = rules["FedAvg"], rules["norm clipping"]
    # the published sevens; of rare styles as many
    total, holders = 66, {"smoke": 10, "laptop": 60, "paper": 60}[scale]
    often = terms.every
    runs: dict[str, Run] = {}

    def add(attack: str, what: str, where: Setting, defence: Defence, plan: Plan | None) -> None:
        runs[f"{attack}: {what}"] = attacked(where, defence, plan)

    for ratio in SHARES:
        where = shared_out(terms, total, ratio, holders)
        for name, rule in (("FedAvg", plain), ("norm clipping", clipped)):
            for attack, plan in ((NONE, None), (ATTACK, Plan())):
                add(attack, f"{name}, {ratio:.0%} with the attacker", where, rule, plan)
    add(NONE, "FedAvg", terms, plain, None)
    for every in (1, often // 2, 2 * often):
        add("every round" if every == 1 else f"every {every} rounds", "FedAvg", terms, plain, Plan(every=every))
    for part in (0.02, 0.05, 0.1):
        add(f"a pool of {part:.0%}", "FedAvg", terms, plain, Plan(pool=max(1, round(part * terms.workers))))
    for part in (0.1, 0.3, 0.6, 1.0):
        add(f"{part:.0%} edge cases", "FedAvg", mixed(terms, min(100, total), part), plain, Plan())
    longer = replace(terms, rounds=2 * terms.rounds)
    for name in ("FedAvg", "norm clipping"):
        last = terms.rounds // 2
        add(f"none after round {last}", f"{name}, twice as long", longer, rules[name], Plan(until=last))
        add(NONE, f"{name}, twice as long", longer, rules[name], None)
    return runs

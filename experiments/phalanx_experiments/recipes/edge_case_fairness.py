# SPDX-License-Identifier: Apache-2.0
"""The cost of defences for honest clients with unusual data: figures 8.5 and 8.6."""

from __future__ import annotations

import phalanx as px
import phalanx_experiments as pe
from phalanx.backdoors.edges import EdgeCases
from phalanx.data.dataset import Data
from phalanx.federated.local_training import LocalTraining
from phalanx.models.model import Model
from phalanx.tools.redteam.setting import ATTACKER, ATTACKS, NONE, Setting, attacked, standard
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.fairness import fairness_tables, plot_fairness
from phalanx_experiments.recipes.edge_case import local, started

RULES = ("FedAvg", "norm clipping", "RFA", "trimmed mean", "Multi-Krum", "Krum", "FLAME")


def setting(
    data: Data,
    edges: EdgeCases,
    model: Model,
    honest: int,
    clients: int,
    holders: int,
    training: LocalTraining,
    norm: float,
    rounds: int,
    evaluate_every: int,
) -> Setting:
    """An attacker in every round, and `holders` honest clients with edge cases that have their true labels."""
    return Setting(
        data,
        edges,
        model,
        workers=honest + 1,
        clients=clients,
        local=training,
        epochs=training.epochs,
        norm=norm,
        rounds=rounds,
        every=1,
        often=rounds,
        held=px.backdoors.with_edge_cases(data, edges),
        partition=px.backdoors.assign_added(px.data.dirichlet(0.5, least=20), clients=holders, first=ATTACKER + 1),
        evaluate_every=evaluate_every,
        evaluators=(px.training.parity(),),
    )


def scaled(scale: str) -> Setting:
    """The setting at a scale; the attacker has a third of the edge cases, honest clients the others."""
    if scale == "smoke":
        edges = px.backdoors.split_edge_cases(px.backdoors.rare_styles(), 1 / 3, attacker=22)
        model = started(px.data.digits(), px.models.mlp((32,)), 60)
        return setting(px.data.digits(), edges, model, 12, 8, 2, local(0.1, 2, 10), 0.8, rounds=4, evaluate_every=2)
    edges = px.backdoors.split_edge_cases(pe.ardis(), 1 / 3, attacker=22)
    if scale == "laptop":
        small = px.models.lenet(channels=(16, 32), hidden=128)
        model = started(px.data.mnist(train=1500, test=2000), small, 141)
        data = px.data.mnist(train=1500, test=1000)
        return setting(data, edges, model, 20, 12, 2, local(0.02, 2, 32), 0.3, rounds=20, evaluate_every=4)
    # figure 8.6: 91 honest clients in every round, one of them with edge cases, and an attacker for 50 rounds
    model = started(px.data.mnist(train=1500), px.models.lenet(), 141)
    return setting(px.data.mnist(), edges, model, 91, 91, 1, local(0.1, 5, 32), 0.75, rounds=50, evaluate_every=5)


@recipe("edge-case-fairness", plot=plot_fairness, tables=fairness_tables)
def edge_case_fairness(scale: str) -> dict[str, Run]:
    """Figures 8.5 and 8.6: how rules treat honest clients who hold edge cases, with and without an attacker."""
    terms = scaled(scale)
    rules = standard(terms.norm, terms.workers)
    return {
        f"{attack}: {name}": attacked(terms, rules[name], ATTACKS[attack])
        for attack in (NONE, "black-box")
        for name in RULES
    }

# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors on CIFAR-10, task 1 of chapter 8, and what makes them stronger or weaker."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
import phalanx_experiments as pe
from phalanx.backdoors.edges import EdgeCases
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.tools.redteam.setting import ATTACKS, NONE, Defence, Plan, Setting, attacked, standard
from phalanx.tools.report.backdoors import plot_backdoors
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.backdoor_sweep import plot_sweep, sweep_tables
from phalanx_experiments.figures.persistence import attack_tables
from phalanx_experiments.recipes.edge_case import PUBLISHED, local, started
from phalanx_experiments.recipes.edge_case import setting as digits_setting
from phalanx_experiments.recipes.edge_case_sweeps import ATTACK, mixed

UNTIL = {"smoke": 6, "laptop": 20, "paper": 500}  # the round behind which no attacker comes any more
FEW = (NONE, ATTACK, "PGD + replacement", f"{ATTACK}, every round")


def setting(scale: str) -> Setting:
    """Task 1 at a scale; smoke uses the digits of task 2."""
    if scale == "smoke":
        return digits_setting(scale)
    if scale == "laptop":
        # two fifths of the images, and of the published mixture: the attacker counts for two honest clients, as there
        return Setting(
            px.data.cifar10(train=20_000, test=1000, size=16),
            pe.southwest(),
            begin(scale, 0.25),
            workers=201,
            clients=10,
            local=local(0.01, 2, 32),
            epochs=8,
            norm=0.5,
            rounds=30,
            every=5,
            often=30,
            clean=100,
            amount=100,
            evaluate_every=1,
            precision="bf16",
        )
    # table 8.1; three rounds between two tests and ten between two attacks, so that every distance is tested
    return Setting(
        px.data.cifar10(),
        pe.southwest(),
        begin(scale, 1.0),
        by_examples=True,
        workers=201,
        clients=10,
        local=local(0.02, 2, 32),
        epochs=2,
        norm=1.0,
        rounds=700,
        every=10,
        often=700,
        clean=400,
        amount=100,
        evaluate_every=3,
        augment=px.data.crop_flip(),
    )


def begin(scale: str, width: float) -> Model:
    """The network at the start of the first attacked round, in a given width."""
    if scale == "smoke":
        return started(px.data.digits(), px.models.mlp((round(32 * width),)), 60)
    if scale == "laptop":
        return plain(px.data.cifar10(test=2000, size=16), px.models.vgg9_conv(width), 3000)
    return plain(px.data.cifar10(), px.models.vgg9_conv(width), 8000, px.data.crop_flip())


def plain(data: Data, model: Model, rounds: int, augment: Augment | None = None) -> Model:
    """A network without BatchNorm, trained by one worker with batches of 64."""
    optimizer = px.optim.sgd(0.03, momentum=0.9, schedule=px.optim.cosine(warmup=50))
    phase = px.Phase(px.training.gradient(64), px.reduce(px.codecs.dense()), optimizer, rounds)
    every = rounds // 6
    return px.training.pretrained(
        px.Run(
            data,
            model,
            (phase,),
            workers=1,
            augment=augment,
            precision="bf16",
            evaluate_every=every,
            checkpoint_every=rounds,
        )
    )


def defences(scale: str) -> dict[str, Defence]:
    """The rules of a scale; the paper's have the published constants."""
    terms = setting(scale)
    if scale == "paper":
        return PUBLISHED[1].rules(terms)
    rules = standard(terms.norm, terms.workers)
    return {name: rules[name] for name in ("FedAvg", "norm clipping", "Multi-Krum")}


@recipe("edge-case-cifar", plot=plot_backdoors, tables=attack_tables)
def edge_case_cifar(scale: str) -> dict[str, Run]:
    """Task 1: planes of one airline are labelled as trucks; which rules fail, and how long the backdoor lasts."""
    terms, rules = setting(scale), defences(scale)
    runs: dict[str, Run] = {}
    for attack, plan in (ATTACKS if scale == "paper" else {name: ATTACKS[name] for name in FEW}).items():
        leaving = None if plan is None else replace(plan, until=UNTIL[scale])
        runs |= {f"{attack}: {name}": attacked(terms, rule, leaving) for name, rule in rules.items()}
    return runs


@dataclass(frozen=True)
class Grid:
    """What is varied, one thing at a time.

    Args:
        rounds: of every run.
        every: rounds from one attack to the next where that does not vary.
        frequencies: in place of `every`.
        pools: attackers, as shares of all workers.
        widths: of the network.
        total: examples in the attacker's mixture.
        mixtures: shares of edge cases in it.
        held: by the share of the edge cases that the attacker has, in percent, the edge cases and the honest clients
            who hold the others.
    """

    rounds: int
    every: int
    frequencies: tuple[int, ...]
    pools: tuple[float, ...]
    widths: tuple[float, ...]
    total: int
    mixtures: tuple[float, ...]
    held: dict[int, tuple[EdgeCases, int]]


GRIDS = {
    "smoke": Grid(
        rounds=4,
        every=1,
        frequencies=(2,),
        pools=(0.1,),
        widths=(0.5, 1.0),
        total=60,
        mixtures=(0.5, 1.0),
        held={50: (px.backdoors.split_edge_cases(px.backdoors.rare_styles(), 0.5), 5)},
    ),
    "laptop": Grid(
        rounds=20,
        every=1,
        frequencies=(1, 2, 10),
        pools=(0.05,),
        widths=(0.125, 0.25),
        total=200,
        mixtures=(0.1, 1.0),
        held={p: (px.backdoors.split_edge_cases(pe.southwest(), p / 100), k) for p, k in ((100, 1), (50, 5), (10, 19))},
    ),
    "paper": Grid(
        rounds=500,
        every=10,
        frequencies=(1, 2, 5, 20, 50, 100),
        pools=(0.005, 0.01, 0.02, 0.03, 0.05),
        widths=(0.5, 1.0, 2.0),
        total=500,
        mixtures=(0.02, 0.1, 0.2, 0.5, 0.8, 1.0),
        held={
            100: (pe.southwest_honest(p=100), 1),
            50: (pe.southwest_honest(p=50), 5),
            10: (pe.southwest_honest(p=10), 19),
        },
    ),
}


@recipe("edge-case-cifar-sweeps", plot=plot_sweep, tables=sweep_tables)
def edge_case_cifar_sweeps(scale: str) -> dict[str, Run]:
    """Task 1 by frequency, pool, capacity, mixture and who holds edge cases: the black box under plain averaging."""
    grid, terms = GRIDS[scale], setting(scale)
    terms = replace(terms, rounds=grid.rounds, often=grid.rounds, every=grid.every)
    rule = standard(terms.norm, terms.workers)["FedAvg"]
    runs: dict[str, Run] = {}

    def add(attack: str, what: str, where: Setting, plan: Plan | None) -> None:
        runs[f"{attack}: {what}"] = attacked(where, rule, plan)

    add(NONE, "FedAvg", terms, None)
    for every in grid.frequencies:
        add("every round" if every == 1 else f"every {every} rounds", "FedAvg", terms, Plan(every=every))
    for part in grid.pools:
        add(f"a pool of {part:.1%}", "FedAvg", terms, Plan(pool=max(1, round(part * terms.workers))))
    for part in grid.mixtures:
        add(f"{part:.0%} edge cases", "FedAvg", mixed(terms, grid.total, part), Plan())
    for width in grid.widths:
        sized = replace(terms, model=begin(scale, width))
        for attack, plan in ((NONE, None), (ATTACK, Plan())):
            add(attack, f"width {width:g}", sized, plan)
    for p, (edges, holders) in grid.held.items():
        for attack, plan in ((NONE, None), (ATTACK, Plan())):
            add(attack, f"{p}% with the attacker", held(terms, edges, holders), plan)
    return runs


def held(terms: Setting, edges: EdgeCases, holders: int) -> Setting:
    """A setting in which random honest clients hold edge cases with true labels; the attacker has others."""
    dealt = px.backdoors.assign_added(terms.partition, holders, drawn=True)
    return replace(
        terms, edges=edges, amount=None, held=px.backdoors.with_edge_cases(terms.data, edges), partition=dealt
    )

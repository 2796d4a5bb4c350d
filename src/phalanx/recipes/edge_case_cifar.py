# SPDX-License-Identifier: Apache-2.0
"""Edge-case backdoors on CIFAR-10, task 1 of chapter 8, and what makes them stronger or weaker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import phalanx as px
from phalanx.backdoors.edges import EdgeCases
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.phase import Run
from phalanx.recipes.edge_case import local, started
from phalanx.recipes.edge_case import setting as digits_setting
from phalanx.recipes.recipe import recipe
from phalanx.redteam.setting import ATTACKS, NONE, Defence, Plan, Setting, attacked, standard
from phalanx.report.backdoor_sweeps import NO_ATTACK, backdoor_sweep_tables, plot_backdoor_sweeps
from phalanx.report.backdoors import plot_backdoors
from phalanx.report.persistence import attack_tables

FEW = (NONE, "black-box", "PGD + replacement", "black-box, every round")


@dataclass(frozen=True)
class Grid:
    """What is varied, one thing at a time.

    Args:
        rounds: of every run; its attacker stays.
        every: rounds from one attack to the next in the panels that do not vary it.
        frequencies: in place of `every`.
        pools: attackers among all workers.
        widths: of the network.
        total: examples in the attacker's mixture.
        mixtures: shares of edge cases in it.
        shared: edge cases of the panel in which honest clients hold some, and how many clients, by the share in percent
            that the attacker holds.
    """

    rounds: int
    every: int
    frequencies: tuple[int, ...]
    pools: tuple[int, ...]
    widths: tuple[float, ...]
    total: int
    mixtures: tuple[float, ...]
    shared: Mapping[int, tuple[EdgeCases, int]]


GRIDS = {
    "smoke": Grid(
        rounds=2,
        every=1,
        frequencies=(1, 2),
        pools=(2,),
        widths=(0.5, 1),
        total=60,
        mixtures=(0.5, 1.0),
        shared={100: (px.shared(px.rare_styles(), 1.0), 1), 50: (px.shared(px.rare_styles(), 0.5), 5)},
    ),
    "laptop": Grid(
        rounds=20,
        every=1,
        frequencies=(1, 2, 10),
        pools=(10,),
        widths=(0.125, 0.25),
        total=500,
        mixtures=(0.05, 0.5, 1.0),
        shared={p: (px.shared(px.southwest(), p / 100), k) for p, k in ((100, 1), (50, 5), (10, 19))},
    ),
    "paper": Grid(
        rounds=500,
        every=10,
        frequencies=(1, 2, 5, 10, 20, 50, 100),
        pools=(1, 2, 4, 6, 8, 10),
        widths=(0.5, 1, 2),
        total=500,
        mixtures=(0.05, 0.1, 0.2, 0.5, 0.8, 1.0),
        shared={
            100: (px.southwest_honest(p=100), 1),
            50: (px.southwest_honest(p=50), 5),
            10: (px.southwest_honest(p=10), 19),
        },
    ),
}


def begun(data: Data, model: Model, rounds: int, lr: float, augment: Augment | None = None) -> Model:
    """A network without BatchNorm that one worker has trained, with batches of 64."""
    optimizer = px.sgd(lr, momentum=0.9, schedule=px.cosine(warmup=50))
    phase = px.phase(px.gradient(64), px.reduce(px.dense()), optimizer, rounds)
    every = max(1, rounds // 6)
    return px.trained(
        px.run(
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


def setting(scale: str) -> Setting:
    """Task 1 in a scale; the attacker leaves before the end. Smoke has the digits of task 2."""
    if scale == "smoke":
        return replace(digits_setting("smoke"), stays=6)
    if scale == "laptop":
        return Setting(
            px.cifar10(test=1000, size=16),
            px.southwest(),
            start(scale, 0.25),
            workers=201,
            clients=10,
            local=local(0.02, 2, 32),
            epochs=8,
            norm=1.0,
            rounds=30,
            every=5,
            often=30,
            clean=400,
            amount=100,
            evaluate_every=1,
            precision="bf16",
            stays=20,
        )
    # table 8.1; three rounds between two tests and ten between two attacks, so that every distance is tested
    return Setting(
        px.cifar10(),
        px.southwest(),
        start(scale, 1.0),
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
        augment=px.crop_flip(),
        stays=500,
    )


def start(scale: str, width: float) -> Model:
    """The model that the first attacked round begins with, in a width."""
    if scale == "smoke":
        return started(px.digits(), px.mlp((round(32 * width),)), 60)
    if scale == "laptop":
        return begun(px.cifar10(test=2000, size=16), px.vgg9_conv(width), 3000, 0.03)
    return begun(px.cifar10(), px.vgg9_conv(width), 8000, 0.03, px.crop_flip())


def defences(scale: str, norm: float) -> dict[str, Defence]:
    """Rules by scale; at paper scale with the published noise and balls."""
    rules = standard(norm)
    if scale != "paper":
        names = ("FedAvg", "norm clipping", "Krum") if scale == "smoke" else ("FedAvg", "norm clipping", "Multi-Krum")
        return {name: rules[name] for name in names}
    decay = 0.998
    return rules | {
        "weak DP": Defence(px.chain(px.clip(2 * norm), px.mean(), px.noise(0.005)), 2 * norm),
        "RFA": Defence(px.geometric_median(), 1.5 * norm, decay),
        "Multi-Krum": Defence(px.multi_krum(f=1), 1.5 * norm, decay),
        "Krum": Defence(px.krum(f=1), 0.5 * norm, decay),
    }


@recipe("edge-case-cifar", plot=plot_backdoors, tables=attack_tables)
def edge_case_cifar(scale: str) -> dict[str, Run]:
    """Task 1: planes of one airline are called trucks; past which rules, and for how long without the attacker."""
    mine = setting(scale)
    tried = ATTACKS if scale == "paper" else {name: ATTACKS[name] for name in FEW}
    rules = defences(scale, mine.norm)
    return {f"{a}: {r}": attacked(mine, rule, plan) for a, plan in tried.items() for r, rule in rules.items()}


@recipe("edge-case-cifar-sweeps", plot=plot_backdoor_sweeps, tables=backdoor_sweep_tables)
def edge_case_cifar_sweeps(scale: str) -> dict[str, Run]:
    """Task 1 by frequency, pool, capacity, mixture and who holds edge cases: the black box under plain averaging."""
    grid = GRIDS[scale]
    base = replace(setting(scale), rounds=grid.rounds, often=grid.rounds, every=grid.every, stays=None)
    total, amount = grid.total, {share: round(share * grid.total) for share in grid.mixtures}
    made = {f"rounds between attacks: {NO_ATTACK}": quiet(base)}
    made |= {f"rounds between attacks: {k}": black_box(replace(base, every=k)) for k in grid.frequencies}
    fixed = replace(base, workers=base.workers - 1)
    made |= {f"pool of {fixed.workers} workers: {k} attack": black_box(fixed, Plan(pool=k)) for k in grid.pools}
    for width in grid.widths:
        sized = replace(base, model=start(scale, width))
        made |= {f"width: {width}": black_box(sized), f"width: {width}, {NO_ATTACK}": quiet(sized)}
    for share, edges in amount.items():
        mixed = replace(base, amount=edges, clean=total - edges)
        made[f"share of edge cases in the mixture: {share:.0%}"] = black_box(mixed)
    for p, (edges, clients) in grid.shared.items():
        made[f"share of edge cases with the attacker: {p}%"] = black_box(held(base, edges, clients))
    return made


def held(setting: Setting, edges: EdgeCases, clients: int) -> Setting:
    """A setting in which some honest clients hold edge cases, too; the attacker has all that are left to it."""
    dealt = px.dealt(setting.partition, clients=clients, drawn=True)
    joined = px.joined(setting.data, edges)
    return replace(setting, edges=edges, amount=None, held=joined, partition=dealt)


def black_box(setting: Setting, plan: Plan | None = None) -> Run:
    """The black box under the plain mean."""
    return attacked(setting, standard(setting.norm)["FedAvg"], plan or Plan())


def quiet(setting: Setting) -> Run:
    """The plain mean without an attack."""
    return attacked(setting, standard(setting.norm)["FedAvg"], None)

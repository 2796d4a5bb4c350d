# SPDX-License-Identifier: Apache-2.0
"""The recipes of task 1: who attacks when, and what is told of it."""

from dataclasses import replace
from pathlib import Path

import pytest

import phalanx as px
from phalanx.recipes import find
from phalanx.recipes.edge_case_cifar import setting
from phalanx.redteam.setting import ATTACKER, Plan, attacked, standard
from phalanx.report.collect import collect
from phalanx.report.persistence import attacks, right_after, since
from tests.test_recipes import ran

MEAN = standard(1.0)["FedAvg"]


def test_the_attacker_leaves_and_success_is_counted_from_the_last_attack(tmp_path: Path) -> None:
    _, _, sheet = ran("edge-case-cifar", tmp_path, "none: FedAvg", "black-box: FedAvg")["tables"]
    found = {run.name: run for run in collect([tmp_path])}
    hit = found["black-box: FedAvg"]
    assert attacks(hit) == [1, 3, 5] and attacks(found["none: FedAvg"]) == [] == list(since(found["none: FedAvg"]))
    # tested after rounds 2, 4, 6 and 8, never right after an attack
    assert list(since(hit)) == [1, 3] and right_after(hit) is None
    assert sheet["header"] == ["attack", "rule", "right after attacks", "1 later"]
    assert sheet["rows"] == [["black-box", "FedAvg", None, round(100 * since(hit)[1], 1)]]


def test_sweeps_have_a_panel_for_each_thing_that_varies(tmp_path: Path) -> None:
    wanted = ["rounds between attacks: 2", "pool of 40 workers: 2 attack", "share of edge cases with the attacker: 50%"]
    (sheet,) = ran("edge-case-cifar-sweeps", tmp_path, *wanted)["tables"]
    assert [f"{panel}: {value}" for panel, value, *_ in sheet["rows"]] == wanted
    assert all(0 <= cell <= 100 for row in sheet["rows"] for cell in row[3:])


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_attacks_end_where_the_attacker_leaves(scale: str) -> None:
    mine = setting(scale)
    assert mine.stays is not None and mine.stays < min(mine.rounds, mine.often)
    for often in (False, True):
        run = attacked(mine, MEAN, Plan(often=often))
        chosen = [run.phases[0].clients.at(i, run.workers, 0) for i in range(run.rounds)]
        hit = [i for i, ids in enumerate(chosen) if ATTACKER in ids]
        assert hit == list(range(0, mine.stays, 1 if often else mine.every))


def test_a_pool_is_drawn_among_the_workers_and_comes_by_lot() -> None:
    mine = replace(setting("smoke"), rounds=60)
    run = attacked(mine, MEAN, Plan(pool=4))
    foes = run.byzantine.at(0, run.workers, run.seed)
    rounds = [foes & set(run.phases[0].clients.at(i, run.workers, 0)) for i in range(60)]
    assert len(foes) == 4 and set.union(*map(set, rounds)) == foes
    assert {len(found) for found in rounds} >= {0, 1, 2}


def test_published_balls_shrink_by_round() -> None:
    run = find("edge-case-cifar").runs("paper")["PGD: Krum"]
    foe = run.phases[0].adversary
    assert isinstance(foe, px.poisoned) and foe.local.ball == px.ball(0.5, decay=0.998)
    assert (foe.clean, foe.amount, run.workers, run.phases[0].clients.count(run.workers)) == (400, 100, 201, 10)


def test_honest_clients_hold_edge_cases_where_the_sweep_says_so() -> None:
    runs = find("edge-case-cifar-sweeps").runs("smoke")
    for p, added in ((100, 0), (50, 6)):
        run = runs[f"share of edge cases with the attacker: {p}%"]
        assert run.data.load().added == added
        assert run.phases[0].adversary.edges == px.shared(px.rare_styles(), p / 100)  # type: ignore[union-attr]

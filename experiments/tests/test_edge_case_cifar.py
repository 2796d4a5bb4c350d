# SPDX-License-Identifier: Apache-2.0
"""The recipes of task 1: who attacks when, and what is told of it."""

from pathlib import Path

import pytest
from test_recipes import ran

import phalanx as px
from phalanx.tools.redteam.setting import ATTACKER
from phalanx.tools.report.backdoors import window
from phalanx.tools.report.collect import collect
from phalanx_experiments.figures.persistence import attacks, right_after, since
from phalanx_experiments.recipes import find
from phalanx_experiments.recipes.edge_case_cifar import UNTIL, setting


def test_the_attacker_leaves_and_success_is_counted_from_the_last_attack(tmp_path: Path) -> None:
    _, _, sheet = ran("edge-case-cifar", tmp_path, "none: FedAvg", "black-box: FedAvg")["tables"]
    found = {run.name: run for run in collect([tmp_path])}
    quiet, hit = found["none: FedAvg"], found["black-box: FedAvg"]
    assert attacks(hit) == [1, 3, 5] and attacks(quiet) == [] and since(quiet) == {}
    # tested after rounds 2, 4, 6 and 8, never right after an attack
    assert list(since(hit)) == [1, 3] and right_after(hit) is None
    assert window(hit) == (3, 6) and window(quiet) == (4, 8)
    assert sheet["header"] == ["attack", "rule", "right after attacks", "1 later"]
    assert sheet["rows"] == [["black-box", "FedAvg", None, round(100 * since(hit)[1], 1)]]


def test_success_right_after_attacks_is_that_of_the_later_ones(tmp_path: Path) -> None:
    ran("edge-case-cifar", tmp_path, "black-box, every round: FedAvg")
    (run,) = collect([tmp_path])
    lines = [line for line in run.metrics() if "examined" in line]
    tested = {line["step"] + 1: next(iter(line["examined"].values()))["attack_success"] for line in lines}
    assert attacks(run) == [1, 2, 3, 4, 5, 6] and sorted(tested) == [2, 4, 6, 8]
    assert right_after(run) == pytest.approx((tested[4] + tested[6]) / 2)
    assert since(run) == {0: tested[6], 2: tested[8]}


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_attacks_end_where_the_attacker_leaves(scale: str) -> None:
    runs, mine = find("edge-case-cifar").runs(scale), setting(scale)
    for label, every in (("black-box", mine.every), ("black-box, every round", 1)):
        run = runs[f"{label}: FedAvg"]
        chosen = [run.phases[0].clients.sample(i, run.workers, 0) for i in range(run.rounds)]
        hit = [i for i, ids in enumerate(chosen) if ATTACKER in ids]
        assert hit == list(range(0, UNTIL[scale], every)) and UNTIL[scale] < run.rounds


def test_the_published_setting() -> None:
    runs = find("edge-case-cifar").runs("paper")
    run = runs["PGD: Krum"]
    foe = run.phases[0].adversary
    assert isinstance(foe, px.backdoors.poisoned) and foe.local.ball == px.federated.ball(0.5, decay=0.998)
    assert (foe.clean, foe.amount, run.workers, run.phases[0].clients.count(run.workers)) == (400, 100, 201, 10)
    assert isinstance(run.model, px.training.pretrained) and run.model.run.model == px.models.vgg9_conv()
    assert run.augment == px.data.crop_flip() and "noise(std=0.005)" in repr(runs["black-box: weak DP"])
    # every distance from an attack is tested at some time
    every, between = run.evaluate_every, setting("paper").every
    assert {(at + 1) * every % between for at in range(between)} == set(range(between))


def test_sweeps_compare_each_attack_with_the_same_setting_without(tmp_path: Path) -> None:
    p = "50% with the attacker"
    wanted = ["none: FedAvg", "a pool of 10.0%: FedAvg", "100% edge cases: FedAvg", f"none: {p}", f"black-box: {p}"]
    (sheet,) = ran("edge-case-cifar-sweeps", tmp_path, *wanted)["tables"]
    assert [f"{attack}: {where}" for attack, where, *_ in sheet["rows"]] == [
        label for label in wanted if not label.startswith("none")
    ]


def test_widths_and_mixtures_and_hands() -> None:
    runs = find("edge-case-cifar-sweeps").runs("smoke")
    foe = runs["100% edge cases: FedAvg"].phases[0].adversary
    assert isinstance(foe, px.backdoors.poisoned) and (foe.amount, foe.clean) == (60, 0)
    assert runs["none: 50% with the attacker"].data.load().added == 6
    models = [runs[f"black-box: width {width}"].model for width in ("0.5", "1")]
    assert [model.run.model for model in models] == [px.models.mlp((16,)), px.models.mlp((32,))]  # type: ignore[union-attr]
    for scale in ("laptop", "paper"):
        for label, run in find("edge-case-cifar-sweeps").runs(scale).items():
            attack, _, where = label.rpartition(": ")
            assert attack == "none" or f"none: {where}" in find("edge-case-cifar-sweeps").runs(scale), label
            assert (run.phases[0].adversary is None) == (attack == "none")

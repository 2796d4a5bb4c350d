# SPDX-License-Identifier: Apache-2.0
"""Tables and plot of attacks against defences, from the runs of their recipe."""

from pathlib import Path
from statistics import mean, stdev

import pytest
from test_recipes import ran

import phalanx as px
from phalanx.tools.report.backdoors import backdoor_tables, cells, excess
from phalanx.tools.report.collect import collect


def test_success_is_counted_late_and_above_the_run_without(tmp_path: Path) -> None:
    wanted = [f"{attack}: {rule}" for rule in ("FedAvg", "Krum") for attack in ("none", "black-box")]
    excess, cost, taken = ran("edge-case-mnist", tmp_path, *wanted)["tables"]
    assert excess["header"] == ["rule", "without", "black-box"] and cost["header"] == ["rule", "none", "black-box"]
    late = {}
    for attack in ("none", "black-box"):
        lines = px.training.RunFolder(tmp_path / f"{attack}-fedavg").metrics()
        tested = [(line["step"], *line["examined"].values()) for line in lines if "examined" in line]
        assert [step for step, _ in tested] == [1, 3, 5, 7]
        late[attack] = sum(found["attack_success"] for step, found in tested if step >= 4) / 2
    (name, without, more), _ = excess["rows"]
    assert name == "FedAvg" and without == pytest.approx(100 * late["none"], abs=0.06)
    assert more == pytest.approx(100 * (late["black-box"] - late["none"]), abs=0.06)
    # only a rule that names its rows can be asked whether it took the attacker's
    assert [row[0] for row in taken["rows"]] == ["Krum"]
    lines = px.training.RunFolder(tmp_path / "black-box-krum").metrics()
    attacked = [line for line in lines if 0 in line["clients"]]
    assert [line["step"] for line in attacked] == [0, 2, 4, 6]
    assert taken["rows"][0][1] == 100 * sum(line["chosen"] == [0] for line in attacked) / 4


def test_seeds_are_paired_and_averaged(tmp_path: Path) -> None:
    wanted = ["none: FedAvg", "black-box: FedAvg"]
    for seed in (0, 1):
        ran("edge-case-mnist", tmp_path / str(seed), *wanted, seed=seed)
    results = collect([tmp_path / "0", tmp_path / "1"])
    above, spread, _ = backdoor_tables(results)
    found = cells(results)
    each: list[float] = [
        excess(found["black-box", "FedAvg"][seed], found["none", "FedAvg"][seed]) or 0.0 for seed in (0, 1)
    ]
    assert above.rows[0][2] == round(100 * mean(each), 1) and spread.rows[0][1] == round(100 * stdev(each), 1)


def test_a_sweep_has_a_line_for_each_attack_with_a_run_to_compare(tmp_path: Path) -> None:
    half = "FedAvg, 50% with the attacker"
    printed = ran("edge-case-mnist-sweeps", tmp_path, f"none: {half}", f"black-box: {half}", "every round: FedAvg")
    (table,) = printed["tables"]
    ((attack, where, success, without, gained, _, n),) = table["rows"]
    assert (attack, where, n) == ("black-box", half, 1) and gained == pytest.approx(success - without, abs=0.11)


def test_what_is_left_of_an_attack_is_told_behind_the_last_one(tmp_path: Path) -> None:
    long = "FedAvg, twice as long"
    printed = ran("edge-case-mnist-sweeps", tmp_path, f"none: {long}", f"none after round 4: {long}")
    _, faded = printed["tables"]
    ((attack, where, soon, later, *rest, n),) = faded["rows"]
    assert (attack, where, n) == ("none after round 4", long, 1)
    success = {}
    for label in ("none", "none-after-round-4"):
        lines = px.training.RunFolder(tmp_path / f"{label}-fedavg-twice-as-long").metrics()
        tested = {line["step"] + 1: next(iter(line["examined"].values())) for line in lines if "examined" in line}
        success[label] = [100 * found["attack_success"] for at, found in tested.items() if 3 < at <= 13]
    # the last attack is that of the third round
    assert soon == pytest.approx(mean(success["none-after-round-4"]) - mean(success["none"]), abs=0.06)
    assert later is not None and rest == [None, None, None]

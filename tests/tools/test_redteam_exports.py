# SPDX-License-Identifier: Apache-2.0
"""Verdicts as SARIF, JUnit XML and JSON by its schema; intervals, requirements, and two studies compared."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from junitparser import Error, Failure, JUnitXml
from sarif_pydantic import Sarif

import phalanx as px
from phalanx.tools.redteam.comparison import BETTER, GONE, NEW, SAME, UNSURE, WORSE, compare, difference
from phalanx.tools.redteam.exports import JUNIT, SARIF
from phalanx.tools.redteam.findings import Findings, RedTeamRequest
from phalanx.tools.redteam.interval import gain_interval
from phalanx.tools.redteam.standards import WORDS, requirements
from tests.cases import draws
from tests.tools.made_grid import lines, red_team_folder, run
from tests.tools.test_cli import phalanx, sentence

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "redteam.schema.json").read_text())
RULES = {"FedAvg": px.aggregators.mean(), "Krum": px.aggregators.krum(f=1)}


def study(path: Path, krum: float, seeds: tuple[int, ...] = (0,), rules=("FedAvg", "Krum"), **more) -> Findings:
    """FedAvg is broken; Krum gains this under PGD, a little more with each seed."""
    runs, logged = {}, {}
    for seed in seeds:
        for rule in rules:
            for attack in ("none", "PGD"):
                label = f"{attack}: {rule}" + (f", seed {seed}" if len(seeds) > 1 else "")
                runs[label] = run(RULES[rule], attack, seed)
                gain = 0.0 if attack == "none" else 0.8 if rule == "FedAvg" else krum + 0.01 * seed
                logged[label] = lines(0.05 + gain, accuracy=0.9 - 0.005 * seed)
    request = RedTeamRequest("made", policies=("attack_success > 0.5 exit 4", "excess > 2"))
    folder = red_team_folder(path, runs, logged, request, **more)
    return folder.write()


def test_the_files_are_read_by_their_own_validators(tmp_path: Path) -> None:
    found = study(tmp_path, 0.3, unended=("PGD: Krum",))
    verdicts = json.loads((tmp_path / "verdicts.json").read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(verdicts, SCHEMA)
    log = Sarif.model_validate_json((tmp_path / SARIF).read_text())
    results = log.runs[0].results or []
    assert [(r.rule_id, str(r.level.value if r.level else "")) for r in results] == [
        ("phalanx/not-attacked", "none"),
        ("phalanx/broken", "error"),
        ("phalanx/not-attacked", "none"),
        ("phalanx/not-known", "note"),
    ]
    suites = {suite.name: suite for suite in JUnitXml.fromfile(str(tmp_path / JUNIT))}
    assert (suites["FedAvg"].tests, suites["FedAvg"].failures, suites["Krum"].errors) == (1, 1, 1)
    (broken,) = suites["FedAvg"]
    assert isinstance(broken.result[0], Failure) and "attack success 80.0 points above" in str(broken.result[0].text)
    (unknown,) = suites["Krum"]
    assert isinstance(unknown.result[0], Error)
    policies = {case.name: case for case in suites["policies"]}
    assert list(policies) == ["attack_success > 0.5 exit 4", "excess > 2"]
    assert policies["attack_success > 0.5 exit 4"].result[0].message == "fails"
    assert found.exit_code == 4


def test_a_finding_has_the_same_fingerprint_in_every_run(tmp_path: Path) -> None:
    prints = []
    for name, krum in (("a", 0.0), ("b", 0.6)):
        study(tmp_path / name, krum)
        results = json.loads((tmp_path / name / SARIF).read_text())["runs"][0]["results"]
        prints.append([result["partialFingerprints"]["attackAndRule/v1"] for result in results])
    assert prints[0] == prints[1] and len(set(prints[0])) == 4


def test_a_schema_that_nothing_breaks_says_nothing(tmp_path: Path) -> None:
    study(tmp_path, 0.0)
    good = json.loads((tmp_path / "verdicts.json").read_text())
    for change in ({"seeds": ["0"]}, {"finished": 1}, {"extra": 0}, {"limits": {}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**good, **change}, SCHEMA)
    bad = json.loads(json.dumps(good))
    bad["rules"][0]["attacks"][0]["verdict"] = "safe"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(bad, SCHEMA)


def test_every_verdict_names_its_requirements() -> None:
    for word in WORDS:
        assert all(each.key and each.words for each in requirements(word))
    names = {str(each) for each in requirements("broken")}
    assert {"AISVS C1.4", "AISVS C11.2", "ATLAS AML.T0020", "ATLAS AML.T0018", "AI RMF MEASURE 2.7"} == names
    assert requirements("not attacked") == ()


@given(st.floats(0.05, 0.95), st.integers(10, 400))
@draws(30)
def test_the_interval_of_one_seed_is_that_of_its_examples(rate: float, examples: int) -> None:
    interval = gain_interval([rate], [0.0], examples)
    assert interval is not None
    error = (rate * (1 - rate) / examples) ** 0.5
    assert interval[0] <= rate <= interval[1]
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * error, abs=0.6 * error + 2.1 / examples)


def test_what_cannot_be_drawn_has_no_interval() -> None:
    assert gain_interval([], [], 10) is None and gain_interval([0.5], [0.1], None) is None
    assert gain_interval([0.5, 0.5], [0.1, 0.1], None) == pytest.approx((0.4, 0.4))


def test_the_interval_covers_the_true_gain_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(1), 0
    for _ in range(200):
        attacked, quiet = (generator.binomial(100, p, size=5) / 100 for p in (0.4, 0.1))
        interval = gain_interval(list(attacked), list(quiet), 100)
        covered += interval is not None and interval[0] <= 0.3 <= interval[1]
    assert covered >= 188


def test_few_examples_and_absent_cells_are_said(tmp_path: Path) -> None:
    runs = {"none: FedAvg": run(RULES["FedAvg"]), "PGD: FedAvg": run(RULES["FedAvg"], "PGD")}
    runs["none: Krum"] = run(RULES["Krum"])
    logged = {label: lines(0.1) for label in runs}
    for said in logged.values():
        for line in said:
            line["examined"]["backdoor()"]["attack_examples"] = 20
    found = red_team_folder(tmp_path, runs, logged).found()
    assert found.notices == [
        "a limit of 10 points of attack success on 20 examples is 2 of them",
        "not in this grid, so not compared: PGD: Krum",
    ]
    assert found.to_json()["rules"][0]["attacks"][1]["attack_examples"] == 20


def words(before: Findings, after: Findings) -> dict[tuple[str, str], str]:
    return {(each.attack, each.rule): each.word for each in compare(before, after)}


def test_two_studies_are_compared_cell_by_cell(tmp_path: Path) -> None:
    seeds = (0, 1, 2)
    before, better = study(tmp_path / "a", 0.4, seeds), study(tmp_path / "b", 0.1, seeds)
    assert words(before, better)["PGD", "Krum"] == BETTER and words(better, before)["PGD", "Krum"] == WORSE
    assert words(before, better)["PGD", "FedAvg"] == words(before, better)["none", "FedAvg"] == SAME
    fewer = study(tmp_path / "c", 0.4, seeds, rules=("FedAvg",))
    assert words(before, fewer)["PGD", "Krum"] == GONE and words(fewer, before)["PGD", "Krum"] == NEW
    unended = study(tmp_path / "d", 0.4, unended=("PGD: Krum",))
    assert words(before, unended)["PGD", "Krum"] == UNSURE
    (krum,) = [each for each in compare(before, better) if (each.attack, each.rule) == ("PGD", "Krum")]
    assert krum.verdicts == ("broken", "broken") and krum.seeds == (3, 3)
    assert krum.success is not None and krum.success.value == pytest.approx(-0.3)


def test_a_change_within_the_spread_of_seeds_is_none() -> None:
    change = difference({0: 0.1, 1: 0.5, 2: 0.3}, {0: 0.2, 1: 0.6, 2: 0.4})
    assert change is not None and change.low is not None and change.high is not None
    assert change.value == pytest.approx(0.1) and change.low < 0 < change.high
    single = difference({0: 0.1}, {0: 0.4})
    assert single is not None and single.low is None and str(single) == "+30.0"
    assert difference({}, {0: 0.4}) is None


def test_the_command_compares(tmp_path: Path) -> None:
    study(tmp_path / "a", 0.4)
    study(tmp_path / "b", 0.1)
    arguments = ("redteam", "--resume", tmp_path / "b", "--compare", tmp_path / "a", "--jobs", "1")
    text = phalanx(*arguments, code=4)
    assert "1 better, 0 worse, of 4" in text
    printed = json.loads(phalanx(*arguments, "--json", code=4))
    assert [each["word"] for each in printed["compared"]].count(BETTER) == 1
    assert "add --resume FOLDER" in sentence("redteam", "--compare", tmp_path / "a")
    assert "holds no study" in sentence("redteam", "--resume", tmp_path / "b", "--compare", tmp_path / "none")

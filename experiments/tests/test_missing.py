# SPDX-License-Identifier: Apache-2.0
"""phalanx reproduce --all: what is missing, in which order it is run, and how results are kept."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phalanx.tools.cli.app import app
from phalanx.training import run_folder
from phalanx_experiments.reproduce import evidence_runner
from phalanx_experiments.reproduce.catalogue import find, items
from phalanx_experiments.reproduce.evidence import Evidence
from phalanx_experiments.reproduce.missing import Missing, missing

RECIPE = "detox-mean-estimation"
ONE = [find("figure-7.6")]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with the committed results of one recipe, of its first seed."""
    source = Path(__file__).parents[1] / "results" / RECIPE
    shutil.copytree(source, tmp_path / "results" / RECIPE)
    document = json.loads((source / "results.json").read_text())
    first = [{k: v for k, v in result.items() if k != "run"} for result in document["results"] if result["seed"] == 0]
    change(tmp_path / "results", results=first, runs={first[0]["label"]: "mean_estimation()"})
    return tmp_path / "results"


def change(folder: Path, /, **fields: object) -> None:
    file = folder / RECIPE / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def seeds(left: list[Missing]) -> list[int]:
    return sorted(each.seed for each in left)


def test_without_results_everything_is_missing_and_with_all_nothing(results: Path) -> None:
    assert seeds(missing(ONE, Evidence(None), 3, "laptop")) == [0, 1, 2]
    assert missing(ONE, Evidence(results), 1, "laptop") == []
    assert seeds(missing(ONE, Evidence(results), 3, "laptop")) == [1, 2]
    with pytest.raises(ValueError, match="--seeds takes a number of seeds >= 1, got 0"):
        missing(ONE, Evidence(results), 0, "laptop")


def test_seeds_that_are_there_count_whatever_their_numbers(results: Path) -> None:
    document = json.loads((results / RECIPE / "results.json").read_text())
    change(results, results=[{**result, "seed": 7} for result in document["results"]])
    assert seeds(missing(ONE, Evidence(results), 2, "laptop")) == [0]


def test_a_result_of_other_settings_or_one_that_is_superseded_is_missing(results: Path) -> None:
    document = json.loads((results / RECIPE / "results.json").read_text())
    change(results, results=[{**result, "superseded": "the code has changed"} for result in document["results"]])
    assert seeds(missing(ONE, Evidence(results), 1, "laptop")) == [0]
    label, text = next(iter(document["runs"].items()))
    for other in (text.replace("(", "(batches=1, ", 1), "no_such_measurement()", "run(digits(), mlp())"):
        change(results, results=document["results"], runs={label: other})
        assert seeds(missing(ONE, Evidence(results), 1, "laptop")) == [0], other


def test_the_order_is_by_numbers_per_minute_and_each_recipe_is_there_once_for_a_seed() -> None:
    left = missing(items(), Evidence(None), 2, "laptop")
    assert [each.value for each in left] == sorted((each.value for each in left), reverse=True)
    names = [each.name for each in left]
    assert len(set(names)) == len(names)
    assert {each.recipe for each in left if each.timed} >= {"draco-cost", "pufferfish-speed"}
    # the runs of two figures that share a recipe are counted once
    digits = next(each for each in left if each.recipe == "edge-case-mnist")
    assert len(set(digits.labels)) == len(digits.labels) and digits.items == (
        "figure-8.11",
        "figure-8.12",
        "figure-8.14",
    )


def run(results: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str, code: int = 0) -> str:
    monkeypatch.setattr("phalanx_experiments.reproduce.command.items", lambda: ONE)
    monkeypatch.setattr(evidence_runner.os, "nice", lambda steps: 0)
    words = ["reproduce", "--all", "--scale", "smoke", "--results", str(results), "--out", str(out), *more]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == code, (result.output, result.stderr, result.exception)
    return result.output + result.stderr


def test_results_are_kept_and_the_command_ends_when_nothing_is_missing(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phalanx.training.run_folder._commit", lambda: "0" * 40)
    shown = run(results, tmp_path / "out", monkeypatch, "--seeds", "2", "--show")
    assert "2 studies are left" in shown and not (tmp_path / "out").exists()
    run(results, tmp_path / "out", monkeypatch, "--seeds", "2")
    document = json.loads((results / RECIPE / "results.json").read_text())
    assert {(r["seed"], r["commit"]) for r in document["results"] if r.get("commit")} == {(0, "0" * 40), (1, "0" * 40)}
    assert document["seeds_of_tables"] == [0, 1] and document["scale"] == "smoke" and document["tables"]
    assert "0 studies are left" in run(results, tmp_path / "other", monkeypatch, "--seeds", "2")
    # a third seed is added to those that are there
    run(results, tmp_path / "out", monkeypatch, "--seeds", "3")
    again = json.loads((results / RECIPE / "results.json").read_text())
    assert [r for r in again["results"] if r["seed"] < 2] == document["results"]
    assert sorted(r["seed"] for r in again["results"]) == [0, 1, 2]


def test_a_study_without_a_commit_is_not_kept(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phalanx.training.run_folder._commit", lambda: None)
    before = (results / RECIPE / "results.json").read_text()
    told = run(results, tmp_path / "out", monkeypatch, "--seeds", "1", code=1)
    assert "has no commit, so nobody can run it again" in told
    assert (results / RECIPE / "results.json").read_text() == before


def test_what_is_timed_waits_for_a_quiet_machine(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phalanx.training.run_folder._commit", lambda: "0" * 40)
    timed = [replace(ONE[0], parts=tuple(replace(part, timed=True) for part in ONE[0].parts))]
    monkeypatch.setattr("phalanx_experiments.reproduce.missing.QUIET_LOAD", 0.5)
    monkeypatch.setattr(evidence_runner.os, "getloadavg", lambda: (3.0, 3.0, 3.0))
    monkeypatch.setitem(globals(), "ONE", timed)
    assert "1 studies are left" in run(results, tmp_path / "out", monkeypatch, "--seeds", "1", code=1)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(evidence_runner.os, "getloadavg", lambda: (0.25, 3.0, 3.0))
    run(results, tmp_path / "out", monkeypatch, "--seeds", "1")
    document = json.loads((results / RECIPE / "results.json").read_text())
    assert [result["load"] for result in document["results"]] == [0.25]


def test_a_misuse_is_one_sentence(tmp_path: Path) -> None:
    for words in (["--all", "table-5.1"], ["--all", "--list"], ["--all", "--seed", "1"], ["--all", "--jobs", "2"]):
        result = CliRunner().invoke(app, ["reproduce", *words])
        assert result.exit_code == 2 and "leave" in result.stderr and "Traceback" not in result.stderr, words


def test_added_results_do_not_make_the_commit_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src" / "module.py"
    kept = tmp_path / run_folder.RESULTS / "results.json"
    for file in (source, kept):
        file.parent.mkdir(parents=True)
        file.write_text("1")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, timeout=30)
    monkeypatch.setattr(run_folder, "__file__", str(source))
    kept.write_text("2")
    commit = run_folder.about()["commit"]
    assert len(commit) == 40
    source.write_text("2")
    assert run_folder.about()["commit"] == f"{commit}+"

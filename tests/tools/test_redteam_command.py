# SPDX-License-Identifier: Apache-2.0
"""phalanx redteam from its first round to its exit code."""

import importlib.metadata
import json
import shutil
import signal
from pathlib import Path

import pytest

import phalanx as px
from phalanx.tools.redteam.request import build_red_team_study
from phalanx.tools.runner import recipe
from phalanx.tools.runner.recipe import recipes
from tests.tools.test_cli import phalanx, process, sentence, wait_for, weights

LOCAL = px.federated.local_training(px.optim.sgd(0.1), batch=20)
SETTING = px.Run(
    px.data.digits(),
    px.models.mlp((8,)),
    (px.federated.fedavg(LOCAL, 6, clients=6, rule=px.aggregators.multi_krum(f=1)),),
    workers=20,
    partition=px.data.dirichlet(0.5),
    checkpoint_every=2,
)
EDGES = ("--edges", "rare_styles()", "--every", "2")
SOME = ("--only", "black-box: yours", "--only", "PGD: yours")
LABELS = ["none: yours", "black-box: yours", "PGD: yours", "none: FedAvg"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A finished study of SETTING, one run after the other, and what it printed."""
    folder = tmp_path_factory.mktemp("studies") / "first"
    file = folder.with_name("setting.txt")
    file.write_text(repr(SETTING))
    return folder, json.loads(phalanx("redteam", file, *EDGES, *SOME, "--jobs", "1", "--out", folder, "--json"))


def test_ones_own_setting_is_attacked(finished: tuple[Path, dict]) -> None:
    folder, printed = finished
    assert printed["finished"] and printed["missing"] == [] and printed["exit_code"] == 0
    assert list(weights(folder)) == LABELS
    (mine, plain) = printed["rules"]
    assert [cell["attack"] for cell in mine["attacks"]] == ["none", "black-box", "PGD"] and plain["rule"] == "FedAvg"
    numbers = mine["attacks"][1]["numbers"]
    assert numbers["excess"] == numbers["attack_success"] - mine["attacks"][0]["numbers"]["attack_success"]
    assert 0 < numbers["parity"] <= 1 and mine["attacks"][1]["seeds"] == 1
    # two of the twenty hold edge cases, and the rule says whom it takes
    assert mine["attacks"][0]["rows"]["holders"]["came"] > 0
    assert printed["notes"][0].startswith("Balls and thresholds are multiples of")
    assert "yours" in Path(printed["report"]).read_text() and (folder / "plot.png").exists()


@pytest.mark.parametrize(
    ("policies", "code"),
    [
        (["main_accuracy < 0"], 0),
        (["main_accuracy >= 0"], 1),
        (["main_accuracy < 0", "main_accuracy >= 0 exit 9", "excess < 2"], 9),
        # the plain mean does not say whose rows it takes, but Multi-Krum does
        (["taken > 2"], 0),
        (["broken > 9 or unknown > 9"], 0),
    ],
)
def test_a_policy_has_its_exit_code(policies: list[str], code: int, finished: tuple[Path, dict]) -> None:
    folder, before = finished
    given = [word for policy in policies for word in ("--fail-if", policy)]
    printed = json.loads(phalanx("redteam", "--resume", folder, *given, "--json", "--jobs", "2", code=code))
    assert printed["exit_code"] == code and printed["rules"] == before["rules"]
    assert [outcome["policy"] for outcome in printed["policies"]] == policies


def test_a_finished_study_is_judged_anew(finished: tuple[Path, dict], tmp_path: Path) -> None:
    # a copy, as its limits change for good
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    text = phalanx(
        "redteam", "--resume", folder, "--fail-if", "main_accuracy < 0", "--accuracy-limit", "0", "--rule", "yours"
    )
    assert "policy 'main_accuracy < 0' holds" in text and f"report  {folder / 'report.html'}" in text
    assert json.loads((folder / "redteam.json").read_text())["limits"]["accuracy"] == 0
    assert "only --rule, --fail-if" in sentence("redteam", "--resume", folder, "--seed", "3")
    assert "did you mean yours" in sentence("redteam", "--resume", folder, "--rule", "your")


@pytest.mark.processes
def test_a_study_that_is_killed_goes_on_to_the_same_verdicts(tmp_path: Path, finished: tuple[Path, dict]) -> None:
    first, before = finished
    folder = tmp_path / "killed"
    running = process("redteam", repr(SETTING), *EDGES, *SOME, "--jobs", "2", "--out", folder)
    wait_for(folder / "black-box-yours" / "checkpoint.safetensors", running)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    printed = json.loads(phalanx("redteam", "--resume", folder, "--jobs", "2", "--json"))
    assert weights(folder) == weights(first) and printed["finished"]
    assert printed["rules"] == before["rules"]


def test_a_recipe_is_attacked_with_its_references(tmp_path: Path) -> None:
    text = phalanx("redteam", "--scale", "smoke", "--only", "black-box: median", "--jobs", "1", "--out", tmp_path / "a")
    assert list(weights(tmp_path / "a")) == ["none: FedAvg", "none: median", "black-box: median"]
    assert "median" in text and json.loads((tmp_path / "a" / "study.json").read_text())["recipe"] == "edge-case-mnist"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quickstart"], "phalanx redteam cannot use quickstart"),
        (["edge-case-mist"], "did you mean edge-case-mnist"),
        (["--edges", "rare_styles()"], "--edges belongs to a run of your own"),
        (["--fail-if", "excess > much"], "followed by a number"),
        (["--only", "Krumm"], "did you mean Krum"),
        (["--seeds", "0"], "--seeds takes a number >= 1"),
        (["--excess-limit", "7"], "limit of excess"),
        (["--jobs", "0"], "--jobs takes"),
        ([repr(SETTING)], "needs --edges"),
        ([repr(SETTING), "--edges", "mean()"], "takes edge cases"),
        ([repr(SETTING), "--edges", "rare_styles()", "--scale", "smoke"], "a scale belongs to a recipe"),
        ([repr(SETTING), *EDGES, "--attacker-share", "0"], "--attacker-share lies in"),
        (["--resume", "absent"], "absent holds no"),
    ],
)
def test_a_wrong_request_is_refused_in_a_sentence(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = sentence("redteam", *arguments)
    assert words in said and said.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_experiments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the recipes of the library itself are installed."""
    own = {made.name: made for made in recipes() if made.build.__module__.startswith("phalanx.")}
    monkeypatch.setattr(recipe, "_recipes", own)
    every = importlib.metadata.entry_points
    monkeypatch.setattr(
        recipe, "entry_points", lambda group: [e for e in every(group=group) if e.value.startswith("phalanx.")]
    )


@pytest.mark.usefixtures("without_experiments")
def test_the_package_with_the_default_recipe_is_named_where_it_is_missing() -> None:
    said = sentence("redteam", "--scale", "smoke")
    assert "edge-case-mnist comes with pip install phalanx-experiments; without it" in said and "rare_styles(" in said


@pytest.mark.usefixtures("without_experiments")
@pytest.mark.parametrize("command", ["run", "show", "redteam"])
def test_the_package_with_more_recipes_is_named_where_it_is_missing(command: str) -> None:
    said = sentence(command, "edge-case-mnist")
    assert "unknown recipe 'edge-case-mnist'; choose from quickstart; the other recipes come with pip install " in said
    assert said.endswith("phalanx-experiments\n")


@pytest.mark.usefixtures("without_experiments")
def test_a_setting_of_ones_own_needs_no_other_package() -> None:
    study, request = build_red_team_study(repr(SETTING), own={"edges": "rare_styles()", "norm": 0.5, "every": 2})
    assert len(study.jobs) > len(LABELS) and request.judged == ("yours",)


def test_torchrun_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert "leave torchrun out" in sentence("redteam", "--scale", "smoke")

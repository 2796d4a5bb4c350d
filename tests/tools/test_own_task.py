# SPDX-License-Identifier: Apache-2.0
"""Commands on a run whose task is no classification: its score is named, and its better direction known."""

import json
import sys

import pytest

from phalanx.core import function, registry
from tests.tools.test_cli import phalanx, sentence

SETTING = (
    "run(client_datasets('tests.data.own_sets:clinic'), custom('tests.data.own_sets:linear'), phases=(phase("
    "local_training(sgd(lr=0.05), batch=4), chain(gather(dense()), median()), sgd(lr=1.0), rounds=4),), workers=4, "
    "partition=by_client(), evaluate_every=2, task=regression(unit='cm'))"
)


@pytest.fixture
def setting(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_extensions", [])
    monkeypatch.setattr(function, "_given", {})
    (tmp_path / "own.txt").write_text(SETTING)
    (tmp_path / "digits.txt").write_text(
        "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=60), chain(gather(dense()), mean()), sgd(lr=0.1), "
        "rounds=2),), workers=2)"
    )
    return tmp_path


def test_every_command_names_the_score(setting, capfd):
    own = setting / "own.txt"
    error = sentence("run", own, "--out", setting / "none")
    assert (
        "is not known in this process; import its module first, as in phalanx run --import tests.data.own_sets" in error
    )
    text = phalanx("run", own, "--import", "tests.data.own_sets", "--out", setting / "own")
    assert "rmse" in text and " cm" in text and "lower is" in text and "accuracy" not in text
    assert (setting / "own/plot.png").read_bytes().startswith(b"\x89PNG")
    status = phalanx("status", setting / "own")
    assert "rmse" in status and " cm" in status
    lines = [json.loads(line) for line in (setting / "own/run/metrics.jsonl").read_text().splitlines()]
    tested = [line for line in lines if "score" in line]
    assert [line["step"] for line in tested] == [1, 3] and "accuracy" not in tested[0]
    assert sorted(tested[0]["client_metrics"]) == ["0", "1", "2", "3"]
    (row,) = json.loads(phalanx("compare", setting / "own", "--json"))
    assert row["curve"]["accuracy"] == [line["score"]["value"] for line in tested]
    low, high = row["curve"]["clients"][0]
    values = [numbers["rmse"] for numbers in tested[0]["client_metrics"].values()]
    assert (low, high) == (min(values), max(values))
    phalanx("compare", setting / "own", "--plot", setting / "own.png")


def test_runs_of_unlike_scores_share_a_table_and_no_plot(setting):
    phalanx("run", setting / "own.txt", "--import", "tests.data.own_sets", "--out", setting / "own")
    phalanx("run", setting / "digits.txt", "--out", setting / "digits")
    table = phalanx("compare", setting / "own", setting / "digits")
    assert "accuracy" in table and "rmse" in table and "%" in table
    error = sentence("compare", setting / "own", setting / "digits", "--plot", setting / "all.png")
    assert "a plot compares runs of one score, and these have rmse, accuracy" in error


def test_bad_functions_end_a_command_with_one_sentence(setting):
    text = SETTING.replace("regression(unit='cm')", "task('torch.nn.functional:nll_loss')")
    (setting / "bad.txt").write_text(text)
    error = sentence("run", setting / "bad.txt", "--import", "tests.data.own_sets", "--out", setting / "bad")
    assert "the loss of outputs" in error and "Traceback" not in error
    assert "tests.data.own_sets" in sys.modules

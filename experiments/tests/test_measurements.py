# SPDX-License-Identifier: Apache-2.0
"""Recipes that measure instead of train, and mean estimation against the library's own chain."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.cases import each
from tests.distributed.launch import torchrun
from typer.testing import CliRunner

import phalanx as px
import phalanx_experiments as pe
from phalanx.tools.cli.app import app
from phalanx.tools.report.collect import collect
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study
from phalanx_experiments.figures.mean_estimation import errors, mean_estimation_tables, plot_mean_estimation
from phalanx_experiments.measurements import mean_estimation as measured
from phalanx_experiments.recipes import find

SMALL = pe.mean_estimation(nodes=105, byzantine=24, r=3, dims=(4, 9), groups=7, norm=30.0)
FAST = ("--set", "groups=5", "--set", "byzantine=19", "--set", "nodes=220", "--set", "dims=(3, 5)")


def phalanx(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output + result.stderr
    return result.stdout if code == 0 else result.stderr


def weighted(n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, whole weights, and the rows repeated as often as they weigh."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=rng)
    weights = torch.randint(0, 4, (n,), generator=rng)
    weights[0] = 5
    return rows, weights.float(), rows.repeat_interleave(weights, dim=0)


@each(("n", "d", "seed"), [(1, 3, 0), (6, 1, 1), (8, 5, 2), (9, 4, 3), (40, 7, 4), (41, 2, 5)])
def test_weights_stand_for_equal_rows(n: int, d: int, seed: int) -> None:
    rows, weights, repeated = weighted(n, d, seed)
    middle = measured.weighted_median(rows, weights)
    torch.testing.assert_close(middle, px.aggregators.median().aggregate(repeated))
    found = measured.weighted_geometric_median(rows, weights, middle)
    best = px.aggregators.geometric_median().aggregate(repeated)
    sums = [float(torch.linalg.vector_norm(repeated - point, dim=1).sum()) for point in (found, best)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)


def test_votes_are_those_of_the_group_vote() -> None:
    samples, byzantine, bad = SMALL.draw(4)
    assert int(byzantine.sum()) == SMALL.byzantine and float(bad.norm()) == pytest.approx(SMALL.norm)
    votes, lost = SMALL.votes(samples, byzantine, bad)
    sent = samples.reshape(-1, 3, 4).mean(dim=1).repeat_interleave(3, dim=0)
    sent[byzantine] = bad
    stack = px.Stack(
        sent, px.Layout(("x",), (torch.Size([4]),)), tuple((i,) for i in range(105)), torch.ones(105).double()
    )
    players = frozenset(byzantine.nonzero().flatten().tolist())
    voted, _ = px.coding.group_vote(r=3, placement=px.coding.in_order())(
        replace(stack, received=True), None, px.Round(byzantine=players)
    )
    torch.testing.assert_close(votes, voted.rows)
    assert lost == next(note.value for note in voted.notes if note.kind == "lost_groups") > 0


def test_the_vote_takes_the_error_away() -> None:
    found = pe.mean_estimation(nodes=11_000, byzantine=900, dims=(20, 50), groups=100).measure(lambda words: None)
    for rule in measured.RULES:
        for plain, detox in zip(found["plain"][rule], found["detox"][rule], strict=True):
            assert plain > 5 * detox > 0
        # the pull of the Byzantine rows grows like the root of the dimension
        assert found["plain"][rule][1] / found["plain"][rule][0] == pytest.approx(np.sqrt(50 / 20), rel=0.1)


def test_a_measurement_depends_on_its_seed_alone() -> None:
    said: list[str] = []
    first = SMALL.measure(said.append)
    torch.manual_seed(99)
    assert SMALL.measure(said.append) == first and said == ["d=4", "d=9"] * 2
    assert replace(SMALL, seed=1).measure(said.append) != first


@each(
    ("text", "words"),
    [
        ("mean_estimation(r=4)", "odd r"),
        ("mean_estimation(nodes=100)", "groups of r=11"),
        ("mean_estimation(nodes=22, byzantine=11, groups=1)", "fewer than half"),
        ("mean_estimation(dims=())", "dims >= 1"),
        ("mean_estimation(groups=20001)", "20000 votes"),
        ("mean_estimation(norm=-1.0)", "norm >= 0"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        px.parse(text)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("measured") / "study"
    options = ("--scale", "paper", "--only", "draw 1", "--only", "draw 3", *FAST)
    return folder, json.loads(phalanx("run", "detox-mean-estimation", *options, "--out", folder, "--json"))


def test_a_study_of_measurements_is_a_folder_like_others(study: tuple[Path, dict]) -> None:
    folder, printed = study
    assert [r["label"] for r in printed["results"]] == ["draw 1", "draw 3"]
    for result in printed["results"]:
        inside = Path(result["folder"])
        assert {p.name for p in inside.iterdir()} == {"config.txt", "about.json", "summary.json"}
        job = px.parse((inside / "config.txt").read_text())
        assert job.nodes == 220 and job.dims == (3, 5)
        assert job.measure(lambda words: None) == result["measured"]
    assert printed["seeds"] == {"draw 1": 0, "draw 3": 2}
    (table,) = printed["tables"]
    assert "mean of 2 draws" in table["title"] and [row[0] for row in table["rows"]] == ["3", "5"]
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_finished_measurements_are_kept(study: tuple[Path, dict]) -> None:
    folder, printed = study
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*/*")}
    assert json.loads(phalanx("run", "--resume", folder, "--json"))["results"] == printed["results"]
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*/*")} == before
    (folder / "draw-3" / "summary.json").unlink()
    again = json.loads(phalanx("run", "--resume", folder, "--json"))["results"]
    assert [r["measured"] for r in again] == [r["measured"] for r in printed["results"]]
    assert (folder / "draw-1" / "summary.json").stat().st_mtime_ns == before[folder / "draw-1" / "summary.json"][1]


def test_the_screen_shows_the_recipes_table_and_not_that_of_runs(study: tuple[Path, dict]) -> None:
    folder, _ = study
    shown = phalanx("run", "--resume", folder)
    assert "with DETOX" in shown and "accuracy" not in shown and "plot.png" in shown
    assert "mean_estimation(" in phalanx("show", "detox-mean-estimation", *FAST)


def test_compare_leaves_measurements_out(study: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = study
    assert "measurements" in phalanx("compare", folder, code=2)
    options = ("--only", "krum", "--set", "rounds=1", "--set", "model=mlp(hidden=())", "--out", tmp_path / "run")
    phalanx("run", "quickstart", *options)
    rows = json.loads(phalanx("compare", folder, tmp_path / "run", "--json"))
    assert [row["label"] for row in rows] == ["krum"]


def test_an_expression_is_measured_and_its_numbers_are_named(tmp_path: Path) -> None:
    file = tmp_path / "small.txt"
    file.write_text(repr(SMALL))
    shown = phalanx("run", file, "--set", "dims=(4,)", "--out", tmp_path / "out")
    assert "detox.median.0" in shown and "plot" not in shown
    assert not (tmp_path / "out" / "plot.png").exists()
    printed = json.loads(phalanx("run", "--resume", tmp_path / "out", "--json"))
    assert printed["plot"] is None and printed["results"][0]["measured"]["dims"] == [4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "detox-mean-estimation", "--set", "rounds=3"), "has no field 'rounds'"),
        (("run", "detox-mean-estimation", "--set", "groups=999999"), "20000 votes"),
        (("probe", "detox-mean-estimation"), "trains nothing"),
    ],
)
def test_what_a_measurement_has_not_is_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    assert words in phalanx(*arguments, code=2)


def test_a_study_of_both_survives_its_json() -> None:
    run = find("quickstart").runs("smoke")["krum"]
    study = Study("run", None, (), {"a": run, "b": SMALL})
    assert Study.from_json(study.to_json()) == study
    assert list(study.runs) == ["a"] and set(study.to_json()) == set(build_study("quickstart", "smoke").to_json())


def test_a_measurement_that_has_not_ended_has_no_table(tmp_path: Path) -> None:
    inside = tmp_path / "draw-1"
    px.training.RunFolder(inside).begin(repr(SMALL))
    (result,) = collect([inside])
    assert result.measures and mean_estimation_tables([result]) == [] and errors([result], "plain", "median") == {}
    plot_mean_estimation([result], "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


@pytest.mark.processes
def test_under_torchrun_one_process_measures(tmp_path: Path) -> None:
    command = ("-m", "phalanx", "run", "detox-mean-estimation", "--only", "draw 1", *FAST)
    printed = json.loads(torchrun(2, *command, "--json", "--out", str(tmp_path / "two"), limit_s=120))
    alone = json.loads(phalanx(*command[2:], "--json", "--out", tmp_path / "one"))
    assert printed["results"][0]["measured"] == alone["results"][0]["measured"]

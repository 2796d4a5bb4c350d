# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cases import each
from typer.testing import CliRunner

import phalanx as px
from phalanx.tools.cli.app import app
from phalanx.tools.report.collect import Curve, Result
from phalanx.tools.report.pretty import pretty
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.runner.request import build_study
from phalanx.training.phase import Run
from phalanx.training.run_folder import slug
from phalanx_experiments.figures.cluster import shared
from phalanx_experiments.figures.convergence import convergence_tables, plot_convergence, styles_of
from phalanx_experiments.figures.tuning import plot_tuning, tuning_tables
from phalanx_experiments.recipes import Recipe, find, recipes
from phalanx_experiments.recipes.atomo_convergence import METHODS, RATES
from phalanx_experiments.recipes.atomo_tuning import GRID, SIGNS
from phalanx_experiments.recipes.pufferfish_cifar import SETTINGS
from phalanx_experiments.recipes.pufferfish_imagenet import KEPT

RECIPES = recipes()


def quickstart(label: str) -> Run:
    """A run of the quickstart at scale smoke."""
    return find("quickstart").runs("smoke")[label]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_every_run_is_its_expression_and_fits_its_workers(recipe: Recipe) -> None:
    for scale in recipe.scales:
        for label, run in recipe.jobs(scale).items():
            assert px.parse(repr(run)) == run, (scale, label)
            run.check()


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[pytest.mark.slow] * r.name.startswith("edge-case"), id=r.name) for r in RECIPES]
)
def test_pretty_expressions_parse_at_every_width(recipe: Recipe) -> None:
    for scale in recipe.scales:
        for label, run in recipe.jobs(scale).items():
            for width in (20, 60, 100):
                text = pretty(repr(run), width)
                assert px.parse(text) == run, (scale, label, width)
            assert max(map(len, pretty(repr(run), 100).splitlines())) <= 100, (scale, label)


@each(("recipe", "scale"), lambda: [(recipe, scale) for recipe in RECIPES for scale in recipe.scales])
def test_labels_name_folders_of_their_own(recipe: Recipe, scale: str) -> None:
    names = [slug(label) for label in recipe.jobs(scale)]
    assert len(set(names)) == len(names)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


def test_scales_grow() -> None:
    for recipe in recipes():
        assert recipe.summary and recipe.summary.endswith(".")
        rounds = [sum(run.rounds for run in recipe.runs(scale).values()) for scale in recipe.scales]
        assert rounds == sorted(rounds)


@given(st.text(max_size=30))
def test_a_slug_is_a_folder_name(label: str) -> None:
    assert slug(label) == slug(slug(label))
    assert set(slug(label)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and slug(label)


def test_the_attack_is_all_that_differs_from_the_run_without_it() -> None:
    runs = find("quickstart").runs("laptop")
    free = runs["mean, no attack"]
    assert free.byzantine == px.adversary.none()
    for label, run in runs.items():
        if run != free:
            assert len(run.byzantine.at(0, run.workers, run.seed)) == 3, label
        same = replace(run, byzantine=free.byzantine, phases=(replace(run.phases[0], scheme=free.phases[0].scheme),))
        assert same == free, label


def test_no_two_attackers_of_the_quickstart_share_a_vote_group() -> None:
    run = find("quickstart").runs("laptop")["group vote r=3"]
    allocation = run.phases[0].scheme.assign(run.workers)
    assert allocation is not None
    groups = [allocation.unit(w) for w in run.byzantine.at(0, run.workers, run.seed)]
    assert len(set(groups)) == 3


@each(
    ("arguments", "words"),
    [
        ({"recipe": "quikstart"}, "did you mean quickstart"),
        ({"recipe": "quickstart", "scale": "huge"}, "choose from smoke, laptop, paper"),
        ({"recipe": "quickstart", "only": ["krun"]}, "did you mean krum"),
        ({"recipe": "quickstart", "settings": ["optimizer.learning"]}, "path=value"),
        ({"recipe": "quickstart", "settings": ["=3"]}, "path=value"),
        ({"recipe": "quickstart", "settings": ["optimizer.rl=3"]}, "has no field 'rl'; choose from lr, momentum"),
        ({"recipe": "quickstart", "settings": ["optimizer.lr=-1"]}, "lr > 0"),
        ({"recipe": "quickstart", "settings": ["rounds=many"]}, "must be a whole number"),
        ({"recipe": "quickstart", "settings": ["phases.7.rounds=1"]}, "choose from 0 to 0"),
        ({"recipe": "quickstart", "settings": ["workers=6"]}, "trimmed mean: trimmed_mean needs"),
        ({"recipe": "quickstart", "settings": ["scheme=gathr(dense())"]}, "did you mean gather"),
        ({"recipe": "krum(f=2)"}, "should be a run(...), got krum(f=2)"),
        ({"recipe": "run(digits(), mlp(), phases=(), workers=3)"}, "at least one phase"),
        ({"recipe": "no/such/file.txt"}, "is no file"),
        ({"recipe": repr(quickstart("krum")), "scale": "smoke"}, "a scale belongs to a recipe"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence_with_the_way_out(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        build_study(**arguments)
    assert words in str(caught.value)


def test_settings_reach_every_run_that_has_their_place() -> None:
    study = build_study("quickstart", "smoke", ["byzantine.count=2", "scheme.2.f=4", "optimizer.lr=0.5"], seed=7)
    assert {run.seed for run in study.runs.values()} == {7}
    assert {run.phases[0].optimizer for run in study.runs.values()} == {px.optim.sgd(lr=0.5)}
    assert "krum(f=4)" in repr(study.runs["krum"]) and "trimmed_mean(f=4)" in repr(study.runs["trimmed mean"])
    assert study.runs["median"].byzantine == px.adversary.evenly_spaced(2)
    assert study.runs["mean, no attack"].byzantine == px.adversary.none()
    first, second = study.notices
    assert "byzantine.count=2 has no place in: mean, no attack" in first
    assert "median" in second and "krum" not in second


def test_labels_may_be_given_as_folders_are_named() -> None:
    study = build_study("quickstart", only=["mean-no-attack", "krum"])
    assert list(study.runs) == ["mean, no attack", "krum"]


def test_a_file_and_an_expression_are_the_same_run(tmp_path) -> None:
    run = quickstart("krum")
    file = tmp_path / "krum (1).txt"
    file.write_text(f"# krum\n{pretty(repr(run), 40)}\n")
    assert build_study(str(file)) == build_study(repr(run))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        build_study(str(file))
    with pytest.raises(ValueError, match="is a folder; give --resume"):
        build_study(str(tmp_path))


def ran(recipe: str, folder: Path, *only: str, seed: int = 0) -> dict:
    """What a recipe prints at scale smoke, and its plot is there."""
    chosen = [word for label in only for word in ("--only", label)]
    result = CliRunner().invoke(
        app, ["run", recipe, "--scale", "smoke", "--seed", str(seed), "--out", str(folder), "--json", *chosen]
    )
    assert result.exit_code == 0, (result.output, result.exception)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads(result.stdout)
    assert json.loads((folder / "tables.json").read_text()) == printed["tables"]
    return printed


def test_all_of_the_composition_sends_least_and_names_the_liars(tmp_path: Path) -> None:
    results = {row["label"]: row for row in ran("composition", tmp_path)["results"]}
    sent = {label: row["bytes_per_worker_round"] for label, row in results.items()}
    whole = {sent.pop(label) for label in list(sent) if ": all" in label}
    assert 2 * max(whole) < min(sent.values())
    # the mean of votes is the mean of what honest workers computed, as no group is lost
    assert results["ALIE: vote"]["accuracy"] == pytest.approx(results["no attack: uncompressed"]["accuracy"], abs=0.05)
    assert results["ALIE: median"]["accuracy"] < results["ALIE: DETOX"]["accuracy"] - 0.1
    accused = {label: [line["worker"] for line in row["accused"] if line["outvoted"]] for label, row in results.items()}
    assert accused["ALIE: vote"] == accused["ALIE: DETOX"] == accused["ALIE: all"] == [0, 4]
    # whoever has the majority of a group names the third
    assert accused["ALIE, a group lost: all"] == [2] and results["ALIE, a group lost: all"]["lost_groups"] == 20


@pytest.mark.data
def test_atomo_convergence_sends_fewer_bytes_than_sgd(tmp_path: Path) -> None:
    printed = ran("atomo-convergence", tmp_path)
    (table,) = printed["tables"]
    assert [row[0] for row in table["rows"]] == list(METHODS)
    sent = {row[0]: row[2] for row in table["rows"]}
    # 24 atoms of so small a network are no shorter than its matrices, which travel as they are then
    shorter = set(sent) - {"SGD", "spectral matrix s=24"}
    assert all(sent[label] < sent["SGD"] for label in shorter)
    assert sent["spectral s=1"] < sent["spectral s=4"] and sent["QSGD 1 bit"] < sent["QSGD 8 bit"]
    assert {r["rounds"] for r in printed["results"]} == {10}


@pytest.mark.data
def test_atomo_tuning_chooses_among_what_it_tried(tmp_path: Path) -> None:
    labels = ("TernGrad: lr 0.25", "TernGrad: lr 0.125", "Signum: lr 0.000976562")
    (table,) = ran("atomo-tuning", tmp_path, *labels)["tables"]
    assert [row[0] for row in table["rows"]] == ["TernGrad", "Signum"]
    assert table["rows"][0][1] in (0.25, 0.125) and table["rows"][1][1] == pytest.approx(2**-10)


@pytest.mark.data
def test_atomo_spectrum_reports_every_look(tmp_path: Path) -> None:
    tables = ran("atomo-spectrum", tmp_path)["tables"]
    assert [table["title"].rpartition("=")[2] for table in tables] == ["'paper'", "'matrix'"]
    for table in tables:
        assert [row[0] for row in table["rows"]] == ["0", "2", "4"]
        # one matrix and another of the same entries
        assert [row[1] for row in table["rows"]] == pytest.approx([row[1] for row in tables[0]["rows"]])
        assert all(1 <= row[4] <= row[5] for row in table["rows"])


@pytest.mark.data
def test_atomo_variance_measures_what_the_theory_says(tmp_path: Path) -> None:
    by_layer, by_round = ran("atomo-variance", tmp_path)["tables"]
    assert len(by_layer["rows"]) == 3 * 3 and [row[0] for row in by_round["rows"]] == ["0", "2", "4"]
    for row in by_layer["rows"]:
        holds = int(row[3].split()[0])
        assert (holds == 3) <= (max(row[4:6]) <= 1) and (holds == 0) <= (min(row[4:6]) > 1)
        # 12 draws of entries, whose second moments hardly vary
        assert row[8] == pytest.approx(row[7], rel=0.1)


def result(label: str, path: Path, losses: list[float | None], accuracy: list[float], sent: list[float]) -> Result:
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps({"loss": loss}) + "\n" for loss in losses))
    curve = Curve([10 * (i + 1) for i in range(len(accuracy))], sent, [1.0] * len(accuracy), accuracy)
    return Result(label, path, {"bytes_per_worker_round": 1000.0}, curve)


def test_bytes_to_accuracy_are_those_of_the_first_test_that_reached_it(tmp_path: Path) -> None:
    runs = [
        result("A: SGD", tmp_path / "a", [], [0.3, 0.52, 0.56], [1e6, 2e6, 3e6]),
        result("A: fast", tmp_path / "b", [], [0.2, 0.5, 0.58], [1e5, 2e5, 3e5]),
        result("A: never", tmp_path / "c", [], [0.2, 0.5, 0.54], [1e5, 2e5, 3e5]),
        result("A: not begun", tmp_path / "d", [], [], []),
        result("B: SGD", tmp_path / "e", [], [0.12], [1e6]),
    ]
    first, second = convergence_tables(runs)
    assert first.header[3] == "rounds to 55 %" and second.header[3] == "rounds to 10 %"
    assert [row[3:] for row in first.rows] == [(30, 3.0, 1.0), (30, 0.3, 10.0), (None, None, None), (None, None, None)]
    assert second.rows == (("SGD", "12.0 %", 1.0, 10, 1.0, 1.0),)
    plot_convergence(runs, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_step_size_of_the_least_late_loss_is_chosen(tmp_path: Path) -> None:
    runs = [
        result("A: lr 0.1", tmp_path / "a", [1.0] * 8, [], []),
        result("A: lr 0.2", tmp_path / "b", [9.0] * 6 + [0.5] * 2, [], []),
        result("A: lr 0.4", tmp_path / "c", [0.1] * 7 + [None], [], []),
        result("B: lr 1", tmp_path / "d", [None], [], []),
        result("B: lr 2", tmp_path / "e", [], [], []),
    ]
    (table,) = tuning_tables(runs)
    assert table.rows == (("A", 0.2, 0.5, False), ("B", None, None, None))
    plot_tuning(runs, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_step_sizes_of_atomo_convergence_are_among_those_that_atomo_tuning_tries() -> None:
    assert RATES.keys() == METHODS.keys()
    assert all(rate in (SIGNS if label == "Signum" else GRID) for label, rate in RATES.items())
    for label, scheme in METHODS.items():
        tried = {
            r.phases[0].optimizer
            for name, r in find("atomo-tuning").runs("laptop").items()
            if name.startswith(f"{label}: ")
        }
        run = find("atomo-convergence").runs("laptop")[label]
        assert run.phases[0].scheme == scheme and run.phases[0].optimizer in tried


def test_no_two_methods_are_drawn_alike() -> None:
    styles = styles_of(list(METHODS))
    looks = {(style["color"], style["linestyle"]) for style in styles.values()}
    assert len(looks) == len(METHODS)


def test_a_sheet_says_what_is_missing() -> None:
    sheet = Sheet("title", ("a", "b", "c", "d", "e"), (("x", None, True, 12345.6, 0.12345),))
    assert sheet.words() == [["x", "-", "yes", "12,346", "0.123"]]
    assert json.loads(json.dumps(sheet.to_json()))["rows"] == [["x", None, True, 12345.6, 0.12345]]


def test_every_panel_of_a_model_has_its_reference() -> None:
    empty = Curve([], [], [], [])
    labels = ("A: no attack", "A, liars: code", "A, liars: median", "B: no attack", "B, liars: code")
    found = shared([Result(label, Path("nowhere"), {}, empty) for label in labels])
    assert {name: [run.label for run in runs] for name, runs in found.items()} == {
        "A, liars": ["A: no attack", "A, liars: code", "A, liars: median"],
        "B, liars": ["B: no attack", "B, liars: code"],
    }


def test_recipes_make_the_published_hybrids():
    found = {}
    for setting in SETTINGS["paper"].values():
        with torch.device("meta"):
            model = setting.size.model.build((3, 32, 32), 10)
        found[setting.size.model] = px.lowrank.plan(model, 1 / 4, setting.first, setting.keep).parameters_after
    assert found == {px.models.resnet18(): 3_336_266, px.models.vgg19_bn(dropout=0.5, bias=False): 8_370_634}
    for net, count in ((px.models.resnet50(stem="large"), 15_202_344), (px.models.wide_resnet50(), 40_047_400)):
        with torch.device("meta"):
            model = net.build((3, 224, 224), 1000)
        assert px.lowrank.plan(model, 1 / 4, keep=KEPT).parameters_after == count

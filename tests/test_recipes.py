# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.phase import Run
from phalanx.recipes import Recipe, find, recipes
from phalanx.recipes.recipe import slug
from phalanx.report.pretty import pretty
from phalanx.study import plan

SIZES = [(r, scale) for r in recipes() for scale in r.scales]
RUNS = {f"{r.name}/{scale}/{label}": run for r, scale in SIZES for label, run in r.runs(scale).items()}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_every_run_is_its_expression_and_fits_its_workers(run: Run) -> None:
    assert px.parse(repr(run)) == run
    run.check()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_pretty_expressions_parse_at_every_width(run: Run) -> None:
    for width in (20, 60, 100):
        text = pretty(repr(run), width)
        assert px.parse(text) == run
    assert max(map(len, pretty(repr(run), 100).splitlines())) <= 100


@pytest.mark.parametrize(("recipe", "scale"), SIZES, ids=[f"{r.name}/{s}" for r, s in SIZES])
def test_labels_name_folders_of_their_own(recipe: Recipe, scale: str) -> None:
    names = [slug(label) for label in recipe.runs(scale)]
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
    assert free.byzantine == px.nobody()
    for label, run in runs.items():
        if run != free:
            assert len(run.byzantine.at(0, run.workers, run.seed)) == 3, label
        same = replace(run, byzantine=free.byzantine, phases=(replace(run.phases[0], scheme=free.phases[0].scheme),))
        assert same == free, label


def test_no_two_attackers_of_the_quickstart_share_a_vote_group() -> None:
    run = find("quickstart").runs("laptop")["group vote r=3"]
    units = run.phases[0].scheme.assign(run.workers)
    assert units is not None
    groups = [units[w] for w in run.byzantine.at(0, run.workers, run.seed)]
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"recipe": "quikstart"}, "did you mean quickstart"),
        ({"recipe": "quickstart", "scale": "huge"}, "choose from smoke, laptop, paper"),
        ({"recipe": "quickstart", "only": ["krun"]}, "did you mean krum"),
        ({"recipe": "quickstart", "settings": ["finish.learning"]}, "path=value"),
        ({"recipe": "quickstart", "settings": ["=3"]}, "path=value"),
        ({"recipe": "quickstart", "settings": ["finish.rl=3"]}, "has no field 'rl'; choose from lr, momentum"),
        ({"recipe": "quickstart", "settings": ["finish.lr=-1"]}, "lr > 0"),
        ({"recipe": "quickstart", "settings": ["rounds=many"]}, "must be a whole number"),
        ({"recipe": "quickstart", "settings": ["phases.7.rounds=1"]}, "choose from 0 to 0"),
        ({"recipe": "quickstart", "settings": ["workers=6"]}, "trimmed mean: trimmed_mean needs"),
        ({"recipe": "quickstart", "settings": ["scheme=gathr(dense())"]}, "did you mean gather"),
        ({"recipe": "krum(f=2)"}, "should be a run(...), got krum(f=2)"),
        ({"recipe": "run(digits(), mlp(), phases=(), workers=3)"}, "at least one phase"),
        ({"recipe": "no/such/file.txt"}, "is no file"),
        ({"recipe": repr(RUNS["quickstart/smoke/krum"]), "scale": "smoke"}, "a scale belongs to a recipe"),
    ],
)
def test_a_plan_that_cannot_be_is_one_sentence_with_the_way_out(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        plan(**arguments)
    assert words in str(caught.value)


def test_settings_reach_every_run_that_has_their_place() -> None:
    study = plan("quickstart", "smoke", ["byzantine.count=2", "scheme.2.f=4", "finish.lr=0.5"], seed=7)
    assert {run.seed for run in study.runs.values()} == {7}
    assert {run.phases[0].finish for run in study.runs.values()} == {px.sgd(lr=0.5)}
    assert "krum(f=4)" in repr(study.runs["krum"]) and "trimmed_mean(f=4)" in repr(study.runs["trimmed mean"])
    assert study.runs["median"].byzantine == px.spread(2)
    assert study.runs["mean, no attack"].byzantine == px.nobody()
    first, second = study.notices
    assert "byzantine.count=2 has no place in: mean, no attack" in first
    assert "median" in second and "krum" not in second


def test_labels_may_be_given_as_folders_are_named() -> None:
    study = plan("quickstart", only=["mean-no-attack", "krum"])
    assert list(study.runs) == ["mean, no attack", "krum"]


def test_a_file_and_an_expression_are_the_same_run(tmp_path) -> None:
    run = RUNS["quickstart/smoke/krum"]
    file = tmp_path / "krum (1).txt"
    file.write_text(f"# krum\n{pretty(repr(run), 40)}\n")
    assert plan(str(file)) == plan(repr(run))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        plan(str(file))
    with pytest.raises(ValueError, match="is a folder; give --resume"):
        plan(str(tmp_path))

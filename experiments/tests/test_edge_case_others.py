# SPDX-License-Identifier: Apache-2.0
"""Recipes on texts, on fairness and on ImageNet: what they compare, a run of each, and their tables."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest
import torch
from test_recipes import ran

import phalanx as px
from phalanx.tools.report.backdoors import backdoor_tables, excess, rates, window
from phalanx.tools.report.collect import collect
from phalanx_experiments.figures.fairness import (
    chosen,
    edge_accuracy,
    fairness_tables,
    own_accuracy,
    parity,
    plot_fairness,
)
from phalanx_experiments.recipes import find

NAMES = ("edge-case-sentiment", "edge-case-text", "edge-case-fairness", "edge-case-imagenet")
SIZES = [(name, scale) for name in NAMES for scale in find(name).scales]


@pytest.mark.parametrize(("name", "scale"), SIZES)
def test_the_attack_is_all_that_differs_between_runs_of_one_rule(name, scale):
    runs = find(name).runs(scale)
    for label, run in runs.items():
        attack, _, rule = label.partition(": ")
        quiet, (phase,) = runs[f"none: {rule}"], run.phases
        assert (phase.adversary is None) == (attack == "none")
        assert quiet.phases[0].scheme.stages[-1:] == phase.scheme.stages[-1:]
        same = replace(run, phases=quiet.phases, evaluators=quiet.evaluators, data=quiet.data)
        assert same == quiet and run.evaluators[0] in quiet.evaluators
        assert len({run.model for run in runs.values()}) == 1


@pytest.mark.data
def test_praise_of_a_director_is_called_negative(tmp_path: Path) -> None:
    wanted = [f"{attack}: {rule}" for attack in ("none", "black-box", "PGD") for rule in ("FedAvg", "Krum")]
    gains, cost, *_ = ran("edge-case-sentiment", tmp_path, *wanted)["tables"]
    assert gains["header"] == ["rule", "without", "black-box", "PGD"] and len(gains["rows"]) == 2
    assert all(40 < value < 100 for row in cost["rows"] for value in row[1:])


@pytest.mark.data
def test_each_sentence_on_athens_is_compared_with_itself_without_an_attack(tmp_path: Path) -> None:
    wanted = ["none: FedAvg", "black-box: FedAvg", "black-box, safe: FedAvg"]
    (gains, *_) = ran("edge-case-text", tmp_path, *wanted)["tables"]
    quiet, *attacked = collect([tmp_path])
    assert len(quiet.job.evaluators) == 5
    rude, safe = (repr(run.job.evaluators[0]) for run in attacked)
    assert "word='safe'" in safe and rates(quiet) == rates(quiet, exam=rude)
    for i, (run, asked) in enumerate(zip(attacked, (rude, safe), strict=True)):
        late = [at for at, _ in rates(run) if window(run)[0] < at]
        floors, got = (dict(rates(each, exam=asked)) for each in (quiet, run))
        want = mean(got[at] for at in late) - mean(floors[at] for at in late)
        assert excess(run, quiet) == pytest.approx(want)
        assert gains["rows"][0][2 + i] == pytest.approx(100 * want, abs=0.06)
    assert backdoor_tables([quiet])[0].header == ("rule", "without")


def test_fairness_tells_clients_with_edge_cases_from_others(tmp_path: Path) -> None:
    wanted = [f"{attack}: {rule}" for attack in ("none", "black-box") for rule in ("FedAvg", "Krum")]
    tables = {t["title"]: t for t in ran("edge-case-fairness", tmp_path, *wanted)["tables"]}
    assert next(iter(tables)) == "accuracy parity ratio (%)"
    (last,) = [table for title, table in tables.items() if "row was taken" in title]
    assert [row[:2] for row in last["rows"]] == [["Krum", "none"], ["Krum", "black-box"]]
    quiet, hit = (run for run in collect([tmp_path]) if run.name in ("none: Krum", "black-box: Krum"))
    lines = quiet.metrics()
    edges = [line for line in lines if set(line["chosen"]) & {1, 2}]
    took = sum(len({1, 2} & set(line["clients"])) for line in lines)
    assert chosen(quiet, "honest, edge cases") == len(edges) / took and chosen(quiet, "attacker") is None
    assert chosen(hit, "attacker") == mean(0 in line["chosen"] for line in hit.metrics())
    # by hand, from the last test of the run, the only one in its window
    found = [line["examined"]["parity()"]["accuracy"] for line in lines if "examined" in line][-1]
    mine = [found[str(worker)] for worker in range(1, 13)]
    assert parity(quiet) == pytest.approx(min(mine) / max(mine))
    assert own_accuracy(quiet, "honest, edge cases") == pytest.approx(mean(mine[:2]))
    assert 0 <= edge_accuracy(quiet) <= 1


def test_fairness_of_several_seeds_and_of_none(tmp_path: Path) -> None:
    for seed in (0, 1):
        ran("edge-case-fairness", tmp_path / str(seed), "none: FedAvg", seed=seed)
    results = collect([tmp_path / "0", tmp_path / "1"])
    first, *_ = fairness_tables(results)
    assert first.title.endswith("mean of 2 seeds") and first.header == ("rule", "none", "none, deviation")
    values = [parity(run) for run in results]
    assert first.rows[0][1] == pytest.approx(100 * mean(values), abs=0.06)
    assert all(sheet.rows == () for sheet in fairness_tables([]))
    plot_fairness(results, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_costumes_go_with_images_on_the_disk(tmp_path: Path, monkeypatch) -> None:
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    rng = torch.Generator().manual_seed(0)
    places = [f"imagenet/{part}/{label}" for part in ("train", "val") for label in "abc"]
    for place in (*places, "edge-case/costumes/train", "edge-case/costumes/test"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(6):
            pixels = torch.randint(256, (20, 24, 3), generator=rng, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(tmp_path / place / f"{i}.png")
    # the recipe's run with small pictures, of three classes, and a small network
    run = px.training.amend(find("edge-case-imagenet").runs("paper")["black-box: Krum"], "model", px.models.mlp((4,)))
    run = px.parse(repr(run).replace("image_folder()", "image_folder(size=8)").replace("label=614", "label=2"))
    for path, value in {"workers": 8, "clients.clients": 5, "rounds": 2, "adversary.clean": 5}.items():
        run = px.training.amend(run, path, value)
    found = px.train(run).summary()["examined"][repr(run.evaluators[0])]
    assert all(0 <= found[key] <= 1 for key in ("attack_success", "edge_accuracy", "source_accuracy"))

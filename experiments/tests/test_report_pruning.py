# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of small networks beside each other."""

import json
from pathlib import Path

import pytest
from test_recipes import ran

import phalanx as px
from phalanx.tools.report.collect import Curve, Result
from phalanx.tools.runner.study import StudyFolder
from phalanx.tools.zoo import network
from phalanx_experiments.figures.pruning import lottery_tables, plot_lottery, plot_slim, slim_tables
from phalanx_experiments.recipes import find
from phalanx_experiments.recipes.pruning import SETTINGS

RUNS = {name: find(name).runs("smoke") for name in ("pufferfish-vs-lth", "pufferfish-vs-ebtrain")}


def result(path: Path, label: str, run: px.Run, sizes: list[int], macs: int, operated: tuple[int, ...] = ()) -> Result:
    path.mkdir(parents=True)
    (path / "config.txt").write_text(f"{run!r}\n")
    lines = [{"step": i, "parameters": n, **({"operated": "x"} if i in operated else {})} for i, n in enumerate(sizes)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    count = range(1, len(sizes) + 1)
    curve = Curve(list(count), [0.0] * len(sizes), [2.0 * i for i in count], [0.1 * i for i in count])
    return Result(label, path, {"macs": macs}, curve)


def test_a_lottery_has_a_line_for_each_cycle(tmp_path: Path) -> None:
    runs = RUNS["pufferfish-vs-lth"]
    results = [
        result(tmp_path / "a", "full", runs["full"], [10, 10], 40),
        result(tmp_path / "b", "pufferfish 1/4", runs["pufferfish 1/4"], [10, 4], 20, (1,)),
        result(tmp_path / "c", "lottery", runs["lottery"], [10, 10, 8, 8, 6, 6], 40, (2, 4)),
    ]
    (sheet,) = lottery_tables(results)
    assert sheet.rows == (
        ("full", 10, "100.0 %", "20.0 %", 2, 4.0, 1.0, 1.0),
        ("pufferfish 1/4", 4, "40.0 %", "20.0 %", 2, 4.0, 1.0, 1.0),
        ("lottery", 10, "100.0 %", "20.0 %", 2, 4.0, 1.0, 1.0),
        ("lottery, 1 pruned", 8, "80.0 %", "40.0 %", 4, 8.0, 2.0, 2.0),
        ("lottery, 2 pruned", 6, "60.0 %", "60.0 %", 6, 12.0, 3.0, 3.0),
    )
    plot_lottery(results, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
    assert lottery_tables(results[2:])[0].rows[0][6] is None and lottery_tables([])[0].rows == ()


def test_networks_that_are_slim_stand_beside_the_full_one(tmp_path: Path) -> None:
    runs = RUNS["pufferfish-vs-ebtrain"]
    results = [
        result(tmp_path / "a", "A: full", runs["full"], [10, 10], 40),
        result(tmp_path / "b", "A: early bird 50 %", runs["early bird 50 %"], [10, 5], 10, (1,)),
        result(tmp_path / "c", "B: early bird 50 %", runs["early bird 50 %"], [], 10),
    ]
    first, second = slim_tables(results)
    assert first.rows == (
        ("full", "20.0 %", 10, "100.0 %", 40, "100.0 %", None, 4.0),
        ("early bird 50 %", "20.0 %", 5, "50.0 %", 10, "25.0 %", 1, 4.0),
    )
    assert (first.title, second.title, second.rows) == ("A", "B", ())
    plot_slim(results, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_lottery_takes_a_training_for_each_size(tmp_path: Path) -> None:
    (table,) = ran("pufferfish-vs-lth", tmp_path)["tables"]
    assert [row[0] for row in table["rows"]][2:] == ["lottery", "lottery, 1 pruned", "lottery, 2 pruned"]
    assert [row[4] for row in table["rows"]] == [12, 12, 12, 24, 36]
    whole = table["rows"][0][1]
    assert whole == table["rows"][2][1] > table["rows"][3][1] > table["rows"][4][1]
    assert StudyFolder(tmp_path).finished(StudyFolder(tmp_path).study) == ["full", "pufferfish 1/4", "lottery"]


def test_early_birds_are_smaller_the_more_channels_go(tmp_path: Path) -> None:
    (table,) = ran("pufferfish-vs-ebtrain", tmp_path)["tables"]
    birds = [row for row in table["rows"] if row[0].startswith("early bird")]
    assert len(birds) == 3 and all(row[6] is not None for row in birds)
    assert birds[0][2] > birds[1][2] > birds[2][2] and birds[0][4] > birds[1][4] > birds[2][4]


@pytest.mark.parametrize(("label", "name"), [("VGG-19-BN", "vgg19-lth"), ("ResNet-50", "resnet50")])
def test_the_hybrids_are_the_published_ones(label: str, name: str) -> None:
    published = network(name)
    chosen = px.lowrank.plan(published.build(), published.ratio, SETTINGS["paper"][label].first)
    assert [entry.name for entry in chosen if entry.rank] == [e.name for e in published.hybrid() if e.rank]

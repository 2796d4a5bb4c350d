# SPDX-License-Identifier: Apache-2.0
"""The cost of a round: what comes out, what is counted, and where the rows lie. No time is asserted."""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.cases import draws, each
from torch import Tensor
from typer.testing import CliRunner

import phalanx as px
import phalanx_experiments as pe
import phalanx_experiments.measurements.one_round as cluster
from phalanx.core.allocation import Allocation
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Line
from phalanx.tools.cli.app import app
from phalanx.tools.report.collect import Curve, Result
from phalanx.training.trainer import Trainer
from phalanx_experiments.figures.iteration_cost import (
    PARAMETERS,
    PUBLISHED,
    iteration_cost_tables,
    measured_parts,
    plot_iteration_cost,
    published,
)
from phalanx_experiments.recipes import find

SMALL = pe.iteration_cost(px.data.digits(), px.models.cnn(channels=(4,)), workers=9, s=1, batch=18)


def quiet(words: str) -> None:
    pass


def untimed(tree: Any) -> Any:
    """Without what differs from call to call."""
    if isinstance(tree, dict):
        return {
            key: untimed(value) for key, value in tree.items() if not key.endswith("_s") or key == "communication_s"
        }
    return tree


def noise(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@draws(12)
@given(st.integers(3, 16), st.data())
def test_codes_recover_the_mean_and_bytes_are_those_of_the_payloads(n: int, data: st.DataObject) -> None:
    s = data.draw(st.integers(1, (n - 1) // 2))
    groups = n // (2 * s + 1)
    batch = math.lcm(n, groups)
    job = pe.iteration_cost(
        px.data.digits(), px.models.mlp((3,)), workers=n, s=s, batch=batch, seed=data.draw(st.integers(0, 99))
    )
    job.check()
    found = job.measure(quiet)
    payload, tensors = 4 * found["entries"] + 8, len(list(px.models.mlp((3,)).build((1, 8, 8), 10).parameters()))
    assert len(found["false"]) == s and found["rows_bytes"] == 4 * n * found["entries"]
    for name, cost in found["schemes"].items():
        copies = 1 if name in ("mean", "geometric median") else n / groups if "repetition" in name else 2 * s + 1
        assert cost["examples"] == batch / n * copies
        for seen in cost["attacks"].values():
            coded = 4 * found["entries"] + 8 * (2 * s + 1) * tensors
            sizes = {"cyclic": n * coded, "repetition by digests": 32 * n + groups * payload}
            assert seen["bytes_in"] == sizes.get(name, n * payload)
            if "repetition" in name or name == "cyclic":
                assert seen["exact"] and seen["error"] < 1e-5
            else:
                assert not seen["exact"] and seen["error"] > 1e-4


def test_rows_in_a_file_give_what_rows_in_memory_do() -> None:
    here, there = SMALL.measure(quiet), replace(SMALL, memory_bytes=0).measure(quiet)
    assert (here.pop("rows_in"), there.pop("rows_in")) == ("memory", "a file")
    assert untimed(here) == untimed(there)


@pytest.mark.parametrize("scheme", ["repetition by digests", "repetition by rows", "mean"])
def test_the_rows_are_those_of_training(scheme: str) -> None:
    # with BatchNorm, whose statistics travel in the row
    phase = px.Phase(px.training.gradient(SMALL.batch), SMALL.schemes[scheme])
    trainer = Trainer(
        px.Run(SMALL.data, SMALL.model, (phase,), workers=9, threads=SMALL.threads), px.LocalCollective(9)
    )
    expected = trainer.compute_rows(0)[0].rows
    rows = torch.empty(9, trainer.layout.d)
    sent = SMALL._sent(scheme, trainer, rows, quiet)
    assert torch.equal(rows, expected) and len(sent.spent) == (9 if scheme == "mean" else 3)


@each("d", [1, 7, cluster.PIECE, cluster.PIECE + 3])
def test_means_are_added_up_piece_by_piece(d: int) -> None:
    units = noise(5, d)
    torch.testing.assert_close(cluster.mean_of(units, [0, 3]), units[[0, 3]].mean(dim=0))


@pytest.mark.parametrize("attack", [px.attacks.reverse(), px.attacks.constant(), px.attacks.gaussian()])
def test_liars_send_what_the_attack_makes_of_their_rows(attack: px.Stage) -> None:
    rows, liars = noise(6, 11), frozenset({1, 4})
    layout = px.Layout.flat(11)
    round = px.Round(world=px.LocalCollective(6), byzantine=liars)
    expected, _ = attack(px.Stack.of(rows.clone(), layout), None, round)
    cluster.falsify(attack, rows, layout, liars)
    torch.testing.assert_close(rows, expected.rows)


def test_a_worker_computes_all_its_units() -> None:
    spent = [1.0, 2.0, 4.0]
    assert cluster.worker_seconds(Allocation.single([0, 0, 1, 2, 2]), spent) == 2.0
    several = Allocation(((0, 1), (1, 2), (0, 2)), ((0.5, 0.5),) * 3)
    assert cluster.worker_seconds(several, spent) == 5.0


@given(st.integers(1, 5), st.integers(1, 200), st.integers(0, 99))
def test_the_relative_error_is_that_of_the_norms(n: int, d: int, seed: int) -> None:
    row, truth = noise(2, d, seed)
    expected = float((row.double() - truth.double()).norm() / truth.double().norm())
    assert cluster.relative_error(row, truth) == pytest.approx(expected, rel=1e-5)
    assert cluster.relative_error(truth, truth) == 0.0
    assert cluster.relative_error(row, torch.zeros(d)) == 1.0 and cluster.relative_error(row * 0, row * 0) == 0.0


@given(st.integers(1, 9), st.integers(1, 300), st.booleans())
def test_large_rows_hold_what_is_written(n: int, d: int, filed: bool) -> None:
    before = set(Path(tempfile.gettempdir()).iterdir())
    with cluster.large_rows(n, d, 0 if filed else 4 * n * d) as rows:
        expected = noise(n, d)
        rows.copy_(expected)
        assert torch.equal(rows, expected) and rows.shape == (n, d) and rows.is_contiguous()
        assert set(Path(tempfile.gettempdir()).iterdir()) <= before, "the file should have no name"


def test_a_full_disk_is_a_sentence_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = 1 << 40
    with pytest.raises(ValueError, match="TMPDIR") as caught, cluster.large_rows(rows, 1000, 8):
        pass
    assert str(tmp_path) in str(caught.value) and "4.4e+06 GB" in str(caught.value)


def test_communication_follows_the_line() -> None:
    line = Line(0.5, 100.0)
    assert line.delivered(1000 * PAYLOAD_RATIO) == pytest.approx(10.5)
    assert line.delivered(0, trips=3) == 1.5
    slow, fast = (replace(SMALL, bandwidth=b, latency_s=0.0).measure(quiet)["schemes"] for b in (1e6, 4e6))
    for name in SMALL.schemes:
        (a, *_), (b, *_) = (list(found[name]["attacks"].values()) for found in (slow, fast))
        assert a["communication_s"] == pytest.approx(4 * b["communication_s"])
        assert a["communication_s"] == pytest.approx(a["bytes_in"] / PAYLOAD_RATIO / 1e6)


def test_a_measurement_leaves_the_threads_alone() -> None:
    before = torch.get_num_threads()
    replace(SMALL, threads=before + 1).measure(quiet)
    assert torch.get_num_threads() == before


@each(
    ("fields", "words"),
    [
        ("s=0", "s >= 1"),
        ("s=5", "workers > 2s"),
        ("s=1, batch=10", "whole shares for 9 workers and for 3 groups"),
        ("s=1, batch=0", "got batch=0"),
        ("s=1, batch=9, repeats=0", "repeats >= 1"),
        ("s=1, batch=9, threads=0", "threads >= 1"),
        ("s=1, batch=9, memory_bytes=-1", "memory_bytes >= 0"),
        ("s=1, batch=9, attacks=()", "at least one attack"),
        ("s=1, batch=9, attacks=(reverse(), reverse())", "two attacks are equal"),
        ("s=1, batch=9, attacks=(alie(),)", "alie() sees all"),
        ("s=1, batch=9, bandwidth=0.0", "bandwidth is above zero"),
        ("s=1, batch=9, latency_s=-1.0", "not negative"),
        ("s=1, batch=9, attacks=(krum(f=1),)", "attacks must be"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(fields: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        px.parse(f"iteration_cost(digits(), mlp(hidden=()), workers=9, {fields})")
    assert words in str(caught.value)


def test_a_code_beyond_its_field_is_refused_before_anything_is_computed() -> None:
    job = pe.iteration_cost(px.data.digits(), px.models.mlp(()), workers=129, s=1, batch=129)
    with pytest.raises(ValueError, match="at most 127 workers"):
        job.measure(quiet)


def result(label: str, measured: dict[str, Any] | None) -> Result:
    return Result(label, Path(), {} if measured is None else {"measured": measured}, Curve([], [], [], []), True)


def published_cluster(label: str, measured: dict[str, Any]) -> dict[str, Any]:
    """As if it had been measured of what was published."""
    return {**measured, "workers": 45, "false": [0, 1, 2, 3, 4], "parameters": PARAMETERS[label]}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return SMALL.measure(quiet)


def test_published_numbers_stand_beside_the_measured_ones(measured: dict[str, Any]) -> None:
    parts = measured_parts(measured)
    assert len(parts) == 10 and all(min(seconds) >= 0 for seconds in parts.values())
    for label, printed in PUBLISHED.items():
        real = result(label, published_cluster(label, measured))
        found = published(real)
        sheets = iteration_cost_tables([real])
        assert [sheet.title.rpartition(": ")[2] for sheet in sheets] == ["constant()", "reverse()"]
        rows = [row for sheet in sheets for row in sheet.rows]
        for row, (place, seconds) in zip(rows, parts.items(), strict=True):
            assert row[0] == place[0]
            assert list(row[1:9:2]) == list(seconds) and row[9] == pytest.approx(sum(seconds))
            known = found[place]
            assert list(row[2:10:2]) == (list(known) if known else [None] * 4)
            assert row[10] == (pytest.approx(sum(known)) if known else None)
        # whatever was published stands beside something
        assert set(printed.values()) <= set(found.values())
    sheets = iteration_cost_tables([result("another", measured)])
    assert all("paper" not in sheet.header for sheet in sheets)
    assert [row[-1] for sheet in sheets for row in sheet.rows] == 2 * [
        "no",
        "no",
        "same bits",
        "same bits",
        "same bits",
    ]


def test_published_numbers_are_of_one_cluster_only(measured: dict[str, Any]) -> None:
    real = published_cluster("AlexNet", measured)
    assert None not in published(result("AlexNet", real)).values()
    for change in ({"workers": 44}, {"false": [1]}, {"parameters": 1}):
        assert published(result("AlexNet", {**real, **change})) == {}
    assert published(result("VGG-19", published_cluster("VGG-19", measured)))["cyclic", "reverse()"] is None
    weaker = json.loads(json.dumps(real).replace("reverse()", "reverse(c=1.0)"))
    assert published(result("AlexNet", weaker))["mean", "reverse(c=1.0)"] is None


def test_plots_of_published_unpublished_and_unfinished_networks(measured: dict[str, Any], tmp_path: Path) -> None:
    finished = [result("AlexNet", published_cluster("AlexNet", measured)), result("another", measured)]
    for name, results in (("both", finished), ("none", []), ("unfinished", [result("AlexNet", None)])):
        plot_iteration_cost(results, "title", tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert iteration_cost_tables([result("AlexNet", None)]) == []


def test_the_recipe_measures_one_network_a_job(tmp_path: Path) -> None:
    options = ("run", "draco-cost", "--scale", "smoke", "--only", "MLP", "--out", str(tmp_path / "out"), "--json")
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, (done.output, done.exception)
    printed = json.loads(done.stdout)
    assert [r["label"] for r in printed["results"]] == ["MLP"]
    assert [len(table["rows"]) for table in printed["tables"]] == [5, 5]
    assert all("of them false" in table["title"] for table in printed["tables"])
    assert (tmp_path / "out" / "plot.png").exists()
    for scale in ("laptop", "paper"):
        jobs = find("draco-cost").jobs(scale)
        assert set(jobs) == set(PUBLISHED) == set(PARAMETERS)
    for label, job in jobs.items():
        with torch.device("meta"):
            model = job.model.build((3, 32, 32), 10)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[label]

# SPDX-License-Identifier: Apache-2.0
"""Densities of a model's outputs against scipy's, and figure 8.1."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from tests.cases import each
from torch import nn
from typer.testing import CliRunner

import phalanx as px
import phalanx_experiments as pe
from phalanx.tools.cli.app import app
from phalanx.tools.report.collect import collect
from phalanx_experiments.figures.edge_density import edge_density_tables, plot_edge_density
from phalanx_experiments.measurements.density import RIDGE, EdgeCaseNess, fit_mixture
from phalanx_experiments.measurements.edge_density import counted
from phalanx_experiments.recipes import find


def drawn(n: int, d: int, classes: int, seed: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    outputs = scale * (torch.randn(n, d, generator=generator) + 3 * labels[:, None])
    return outputs, labels


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from(["own", "shared"]),
    st.integers(0, 9),
    st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_log_densities_are_those_of_the_mixture(n, d, classes, covariance, seed, scale):
    x, y = drawn(n, d, classes, seed, scale)
    assume(max((y == k).sum() for k in range(classes)) >= 2)
    mixture = fit_mixture(x, y, covariance)
    known = y.unique().tolist()
    parts = [x[y == k].double().numpy() for k in known]
    spreads = [np.cov(part.T, bias=True).reshape(d, d) if len(part) > 1 else np.zeros((d, d)) for part in parts]
    pooled = sum(len(p) * s for p, s in zip(parts, spreads, strict=True)) / n
    ridge = RIDGE * np.trace(pooled) / d * np.eye(d)
    want = sum(
        len(p)
        / n
        * multivariate_normal(p.mean(0), (s if covariance == "own" else pooled) + ridge).pdf(x.double().numpy())
        for p, s in zip(parts, spreads, strict=True)
    )
    assert torch.allclose(mixture.log_density(x), torch.from_numpy(np.log(np.atleast_1d(want))), rtol=1e-6, atol=1e-6)
    assert mixture.weights.sum() == pytest.approx(1)
    assert (mixture.log_density(x + 50 * scale) < mixture.log_density(x).min()).all()


def test_density_does_not_care_about_the_order_and_survives_far_points():
    x, y = drawn(50, 3, 2, 0)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    a, b = fit_mixture(x, y), fit_mixture(x[order], y[order])
    torch.testing.assert_close(a.log_density(x), b.log_density(x))
    far = a.log_density(torch.full((1, 3), 1e8))
    assert far.isfinite().all() and far < -1e10


@each(
    ("x", "y", "words"),
    [
        (torch.zeros(0, 2), torch.zeros(0).long(), "got \\(0, 2\\)"),
        (torch.zeros(3, 2), torch.zeros(2).long(), "got \\(3, 2\\) and \\(2,\\)"),
        (torch.full((3, 2), torch.nan), torch.zeros(3).long(), "NaN or Inf"),
        (torch.ones(3, 2), torch.zeros(3).long(), "all of each class are equal"),
        (torch.ones(3, 2, 2), torch.zeros(3).long(), "outputs \\(n, d\\)"),
    ],
)
def test_outputs_without_a_mixture(x, y, words):
    with pytest.raises(ValueError, match=words):
        fit_mixture(x, y)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.lists(st.integers(0, 4), min_size=1, max_size=8))
def test_separation_is_the_share_of_pairs(test, edge):
    found = EdgeCaseNess(torch.zeros(1), torch.tensor(test).double(), torch.tensor(edge).double(), torch.zeros(1), 2.0)
    pairs = [(t > e) + (t == e) / 2 for t in test for e in edge]
    assert found.separation == pytest.approx(sum(pairs) / len(pairs))
    assert found.below()["edge"] == pytest.approx(sum(e < 2 for e in edge) / len(edge))


@given(st.lists(st.floats(-3, 3), max_size=30), st.integers(1, 7))
def test_histograms_count_everything_inside(values, bins):
    marks = torch.linspace(-2, 2, bins + 1, dtype=torch.float64)
    x = torch.tensor(values, dtype=torch.float64)
    assert counted(x, marks) == np.histogram(x.numpy(), marks.numpy())[0].tolist()


class Blurred(nn.Module):
    """Means of the quarters of an image, with a dropout that would show in training mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        assert not torch.is_grad_enabled()
        return self.drop(self.scale * nn.functional.adaptive_avg_pool2d(x, 2).flatten(1))


def test_edge_case_ness_tells_inverted_digits_and_leaves_the_model_alone():
    data = px.data.digits().load()
    edges = px.backdoors.split_edge_cases(px.backdoors.rare_styles(), 0.5, 20).load(data)
    model = Blurred().train()
    found = pe.edge_case_ness(model, data, edges, percentile=5.0, batch=100)
    assert model.training and model.drop.training
    assert [len(v) for v in (found.train, found.test, found.edge, found.edge_test)] == [1371, 360, 20, 37]
    assert found.below()["train"] == pytest.approx(0.05, abs=0.002) and found.below()["edge"] == 1.0
    assert found.separation > 0.99
    again = pe.edge_case_ness(model, data, edges, percentile=5.0, batch=7)
    torch.testing.assert_close(again.train, found.train)
    # ordinary digits among the candidates are dropped, the edge cases stay
    mixed = replace(
        edges,
        train_x=torch.cat([edges.train_x, data.test_x[:80]]),
        true_y=torch.cat([edges.true_y, data.test_y[:80]]),
    )
    kept = pe.edge_case_ness(model, data, mixed, percentile=5.0).filtered(mixed)
    assert torch.equal(kept.train_x[:20], edges.train_x) and len(kept) < 36


def test_edge_case_ness_of_what_has_no_density():
    data, edges = px.data.digits().load(), px.backdoors.rare_styles().load(px.data.digits().load())
    with pytest.raises(ValueError, match="a percentile in"):
        pe.edge_case_ness(Blurred(), data, edges, percentile=101)
    with pytest.raises(ValueError, match="batch >= 1"):
        pe.edge_case_ness(Blurred(), data, edges, batch=0)
    x = torch.zeros(4, 5, dtype=torch.int64)
    passages = px.data.Dataset("toy", x, x, x, x, 3, vocabulary=3)
    with pytest.raises(ValueError, match="one label an example, and toy has one for each token"):
        pe.edge_case_ness(Blurred(), passages, edges)


def test_figure_8_1_from_the_command_line(tmp_path):
    out = tmp_path / "out"
    words = ["run", "edge-density", "--scale", "smoke", "--out", str(out), "--set", "rounds=40"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    results = collect([out])
    assert {r.label for r in results} == {"inverted", "rotated", "thin"} and all(r.measures for r in results)
    for r in results:
        seen = json.loads(json.dumps(r.summary["measured"]))
        for part, size in seen["sizes"].items():
            assert sum(seen["counts"][part]) + seen["left"][part] == size
        assert seen["separation"] > 0.5
    (sheet,) = edge_density_tables(results)
    assert len(sheet.rows) == 3 and len(sheet.header) == len(sheet.rows[0])
    plot_edge_density(results, "figure 8.1", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert edge_density_tables([]) == [] and find("edge-density").jobs("laptop")


ROOT = Path(__file__).parents[2]
NAMES = {"`ardis()`": "ARDIS", "ARDIS sevens": "ARDIS", "inverted strokes": "inverted", "rotated digits": "rotated"}
NAMES |= {"thin strokes": "thin"}


@pytest.mark.parametrize("page", ["docs/edge_cases.md", "experiments/results/README.md"])
def test_tables_of_the_pages_have_the_numbers_of_the_results(page):
    results = json.loads((ROOT / "experiments" / "results" / "edge-density" / "results.json").read_text())
    measured = {result["label"]: result["measured"] for result in results["results"]}
    text = (ROOT / page).read_text().partition("| edge cases | separation |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in text.splitlines()[2:]]
    assert {NAMES.get(name, name) for name, *_ in rows} == set(measured) and len(rows) == len(measured)
    for name, *numbers in rows:
        of = measured[NAMES.get(name, name)]
        expected = (of["separation"], of["median"]["test"], of["median"]["edge"], 100 * of["below"]["edge"])
        decimals = (3, 1, 1, 1)
        assert numbers == [f"{value:.{d}f}" for value, d in zip(expected, decimals, strict=True)], name
    accuracies = {f"{100 * of['accuracy']:.1f} %" for of in measured.values()}
    around = re.split(r"^## ", (ROOT / page).read_text(), flags=re.M)
    (section,) = [part for part in around if "| edge cases | separation |" in part]
    assert all(accuracy in section for accuracy in accuracies), f"{page} names other accuracies than {accuracies}"

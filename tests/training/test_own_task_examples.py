# SPDX-License-Identifier: Apache-2.0
"""The examples of tasks of one's own run as they are, learn something, and stay short."""

import importlib.util
import sys
from dataclasses import replace

import pytest

import phalanx as px
from tests.docs.docs_blocks import ROOT

FOLDER = ROOT / "examples/own_task"
LINES = 25  # of model, data, loss and federation


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_examples_are_all_tested_and_short():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == ["segmentation", "table", "text"]
    for path in FOLDER.glob("*.py"):
        code = path.read_text().split('"""', 2)[2].partition("if __name__")[0]
        assert len([line for line in code.splitlines() if line.strip()]) <= LINES, path.name


@pytest.mark.parametrize(
    ("name", "rounds", "metric", "least", "most"),
    [("table", 20, "rmse", 0.3, 0.75), ("segmentation", 4, "mean_iou", 0.6, 1.0), ("text", 2, "bits", 2.0, 5.5)],
)
def test_an_example_learns(name, rounds, metric, least, most):
    run = loaded(name).run
    assert px.parse(repr(run)) == run
    summary = px.train(replace(run, phases=(replace(run.phases[0], rounds=rounds),))).summary()
    assert summary["score"]["name"] == metric and least < summary["score"]["value"] < most
    clients = summary["client_metrics"]
    assert len(clients) == run.workers and all(numbers[metric] is not None for numbers in clients.values())
    total = sum(numbers["examples"] for numbers in clients.values())
    mean = sum(numbers["examples"] * numbers[metric] for numbers in clients.values()) / total
    assert summary["metrics"][metric] == pytest.approx(mean)

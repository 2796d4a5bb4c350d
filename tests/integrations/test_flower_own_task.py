# SPDX-License-Identifier: Apache-2.0
"""Tasks, data and files of one's own on Flower: each client has only its own, and measures on them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'phalanx-train[flower]'")

from flwr.app import Array, ArrayRecord
from torch.utils.data import TensorDataset

import phalanx as px
from phalanx.integrations.flower import client_app
from tests.integrations.flower_grid import AFTER, LocalGrid, conducted
from tests.training.test_own_task_examples import loaded


@pytest.mark.parametrize(("name", "rounds"), [("table", 4), ("segmentation", 2), ("text", 1)])
def test_an_example_runs_on_flower_as_in_the_simulation(name, rounds):
    run = loaded(name).run
    run = replace(run, phases=(replace(run.phases[0], rounds=rounds),))
    simulated = px.train(run).summary()
    outcome = conducted(run)
    assert outcome.summary["weights_sha256"] == simulated["weights_sha256"]
    assert outcome.summary["client_metrics"] == simulated["client_metrics"]
    assert outcome.summary["score"] == simulated["score"]
    assert "client_metrics" in outcome.rounds[-1]


def table(path):
    rows = torch.tensor([[float(x) for x in line.split(",")] for line in path.read_text().splitlines()])
    return TensorDataset(rows[:, :3], rows[:, 3:])


def network():
    return torch.nn.Linear(3, 1)


def of_its_folder(number):
    """The files of a client's own machine; its folder is known there only."""
    folder = Path(str(px.data.node_config()["folder"]))
    return table(folder / "train.csv"), table(folder / "test.csv")


def test_each_node_reads_only_the_files_that_its_own_configuration_names(tmp_path):
    generator = torch.Generator().manual_seed(0)
    run = px.Run(
        px.data.client_datasets(of_its_folder),
        px.models.custom(network),
        (px.federated.fedavg(px.federated.local_training(px.optim.sgd(0.05), epochs=1), 3),),
        workers=3,
        partition=px.data.by_client(),
        task=px.training.regression(),
        evaluate_every=1,
    )
    grid = LocalGrid(client_app(run), 3)
    for node, context in grid.nodes.items():
        folder = tmp_path / f"machine-{node}"
        folder.mkdir()
        for part, size in (("train", 20), ("test", 5 + node % 3)):
            rows = torch.randn(size, 4, generator=generator)
            (folder / f"{part}.csv").write_text("\n".join(",".join(f"{x:.5f}" for x in row) for row in rows.tolist()))
        context.node_config["folder"] = str(folder)

    outcome = conducted(run, grid, AFTER, folder=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(set(line["client_metrics"]) == {"0", "1", "2"} for line in lines)
    sizes = {str(c.node_config["partition-id"]): 5 + node % 3 for node, c in grid.nodes.items()}
    last = outcome.summary["client_metrics"]
    assert {client: numbers["examples"] for client, numbers in last.items()} == sizes
    mean = sum(sizes[c] * numbers["rmse"] for c, numbers in last.items()) / sum(sizes.values())
    assert outcome.summary["metrics"]["rmse"] == pytest.approx(mean)


def test_bad_answers_to_an_evaluation_are_left_out():
    run = loaded("table").run
    run = replace(run, phases=(replace(run.phases[0], rounds=1),))

    class Liars(LocalGrid):
        def reply(self, message):
            part = self.nodes[message.metadata.dst_node_id].node_config["partition-id"]
            reply = super().reply(message)
            if message.metadata.message_type == "evaluate" and part in (1, 2):
                data = {1: b"garbage", 2: b""}[part]
                reply.content["tested"] = ArrayRecord({"packed": Array("uint8", (len(data),), "phalanx", data)})
            return reply

    outcome = conducted(run, Liars(client_app(run), run.workers))
    line = outcome.rounds[-1]
    assert set(line["clients_left_out"]) == {"1", "2"} and len(line["client_metrics"]) == run.workers - 2

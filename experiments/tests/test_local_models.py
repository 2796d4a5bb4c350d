# SPDX-License-Identifier: Apache-2.0
"""Clients by themselves and as an ensemble, against the library's own runs."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
import phalanx_experiments as pe
from phalanx.training.score import assess
from phalanx.training.trainer import Trainer

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=2, batch=20)
SMALL = pe.local_models(
    px.data.digits(), px.models.mlp((8,)), workers=3, partition=px.data.dirichlet(0.5), local=LOCAL, seed=4
)


def measured(job):
    return job.measure(lambda words: None)


def test_one_client_alone_is_the_ensemble_and_the_run():
    alone = replace(SMALL, workers=1)
    found = measured(alone)
    assert found["accuracies"] == [found["mean"]] == [found["ensemble"]]
    phase = px.federated.fedavg(replace(LOCAL, own=True), rounds=1)
    run = px.Run(px.data.digits(), px.models.mlp((8,)), (phase,), workers=1, partition=px.data.dirichlet(0.5), seed=4)
    assert px.train(run).evaluate()[0] == found["ensemble"]


def test_clients_are_those_that_are_matched_and_probabilities_are_averaged():
    found, said = measured(SMALL), []
    trainer = Trainer(replace(SMALL.run, phases=(px.federated.pfnm(LOCAL),)))
    stack, _ = trainer.compute_rows(0)
    data, accuracies = trainer.data, []
    x, y = data.test(slice(None))
    together = torch.zeros(len(y), 10)
    for row in stack.rows:
        trainer.model.load_state_dict(stack.layout.split(row), strict=False)
        accuracies.append(assess(trainer.model, data, trainer.device, "float32")[0])
        together = together + trainer.model(x).softmax(dim=-1)
    assert found["accuracies"] == accuracies and found["mean"] == pytest.approx(sum(accuracies) / 3)
    assert found["ensemble"] == int((together.argmax(dim=-1) == y).sum()) / len(y)
    assert (
        found["parameters"] == 3 * trainer.model_state.num_parameters and found["bytes_up"] == 4 * found["parameters"]
    )
    assert found["local_epochs"] == 2 and SMALL.measure(said.append) == found
    assert said == ["client 1 of 3", "client 2 of 3", "client 3 of 3"]


def test_an_ensemble_knows_more_than_its_members():
    found = measured(replace(SMALL, workers=8, model=px.models.mlp((32,))))
    assert found["ensemble"] > found["mean"] + 0.05 and min(found["accuracies"]) < found["mean"]


def test_what_cannot_be_trained_is_told():
    with pytest.raises(ValueError, match="workers >= 1"):
        replace(SMALL, workers=0)

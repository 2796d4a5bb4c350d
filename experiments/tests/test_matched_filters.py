# SPDX-License-Identifier: Apache-2.0
"""Filters of two clients, their match and their average."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import phalanx as px
import phalanx_experiments as pe
from phalanx.training.trainer import Trainer

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=1, batch=50)
SMALL = pe.matched_filters(px.data.digits(), px.models.cnn(channels=(4, 6)), local=LOCAL, image=5, pairs=20, seed=3)


def measured(job):
    return job.measure(lambda words: None)


def test_pictures_are_those_of_the_filters_on_the_image():
    found, trainer = measured(SMALL), Trainer(SMALL.run)
    stack, _ = trainer.compute_rows(0)
    x, _ = trainer.data.test(slice(5, 6))
    one, two = (stack.layout.split(row) for row in stack.rows)
    name = next(name for name, shape in zip(stack.layout.names, stack.layout.shapes, strict=True) if len(shape) == 4)
    layer = trainer.model.get_submodule(name.removesuffix(".weight"))
    assert found["matched"] == len(found["pairs"]) and found["filters"] == 4
    for pair in found["pairs"]:
        i, j, _, same = pair["numbers"].values()
        assert same == i
        average = (one[name][i] + two[name][j]) / 2
        torch.testing.assert_close(torch.tensor(pair["filters"]["FedMA"]), average, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(pair["filters"]["client 2"]), two[name][j], rtol=0, atol=1e-4)
        plain = stack.weights.float() @ torch.stack([one[name][i].flatten(), two[name][i].flatten()])
        fedavg = torch.tensor(pair["filters"]["FedAvg"]).flatten()
        torch.testing.assert_close(fedavg, plain / stack.weights.sum().float(), rtol=0, atol=1e-4)
        seen = F.conv2d(x, one[name][i : i + 1], None, layer.stride, layer.padding)[0, 0].relu()
        torch.testing.assert_close(torch.tensor(pair["seen"]["client 1"]), seen, rtol=0, atol=1e-3)
    alike = [pair["alike"] for pair in found["pairs"]]
    assert alike == sorted(alike, reverse=True)


def test_without_matching_both_averages_are_one():
    found = measured(replace(SMALL, matcher=px.matching.identity(), partition=px.data.iid()))
    assert found["matched"] == 4
    for pair in found["pairs"]:
        assert len(set(pair["numbers"].values())) == 1
        # clients of iid() differ by one example
        torch.testing.assert_close(*(torch.tensor(pair["filters"][k]) for k in ("FedMA", "FedAvg")), rtol=0, atol=1e-3)


def test_what_cannot_be_drawn_is_told():
    with pytest.raises(ValueError, match="Sequential has none; choose cnn"):
        measured(replace(SMALL, model=px.models.mlp((4,))))
    with pytest.raises(ValueError, match="the test part has 360 images, got image=999"):
        measured(replace(SMALL, image=999))
    with pytest.raises(ValueError, match="pairs >= 1"):
        replace(SMALL, pairs=0)

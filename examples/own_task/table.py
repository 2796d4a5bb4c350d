# SPDX-License-Identifier: Apache-2.0
"""Regression on a table: ten clinics, each with patients of its own, and a rule that tolerates two liars."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import TensorDataset

import phalanx as px


def clinic(number):
    x, y = (torch.tensor(values, dtype=torch.float32) for values in load_diabetes(return_X_y=True))
    x, y = 20 * x[number::10], y[number::10].unsqueeze(1) / 100
    return TensorDataset(x[:34], y[:34]), TensorDataset(x[34:], y[34:])


def network():
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))


local = px.federated.local_training(px.optim.sgd(0.02), epochs=2)
run = px.Run(
    px.data.client_datasets(clinic),
    px.models.custom(network),
    (px.federated.fedavg(local, rounds=20, rule=px.aggregators.trimmed_mean(f=2)),),
    workers=10,
    partition=px.data.by_client(),
    task=px.training.regression(unit="x 100"),
)

if __name__ == "__main__":
    print(px.train(run).summary()["client_metrics"])

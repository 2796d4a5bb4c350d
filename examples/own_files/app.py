# SPDX-License-Identifier: Apache-2.0
"""Clinics whose tables never leave their machines, with a rule that tolerates a liar; README.md has the commands."""

import csv
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import phalanx as px
from phalanx.integrations.flower import client_app, server_app


def rows(file):
    with file.open() as lines:
        table = torch.tensor([[float(x) for x in row] for row in csv.reader(lines)])
    return TensorDataset(table[:, :-1], table[:, -1:])


def clinic(number):
    folder = Path(px.data.node_config().get("folder", f"clinics/{number}"))
    return rows(folder / "train.csv"), rows(folder / "test.csv")


def network():
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))


run = px.Run(
    px.data.client_datasets(clinic),
    px.models.custom(network),
    (px.federated.fedavg(px.federated.local_training(px.optim.sgd(0.02)), 5, rule=px.aggregators.trimmed_mean(f=1)),),
    workers=5,
    partition=px.data.by_client(),
    task=px.training.regression(unit="x 100"),
    evaluate_every=1,
)

# Flower finds these two by name: each is a plain assignment
server = server_app(run)
client = client_app(run)

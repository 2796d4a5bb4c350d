# SPDX-License-Identifier: Apache-2.0
"""A character model of texts: six clients, each with a document of its own, a loss and a metric that are functions."""

import torch
from sklearn import datasets
from torch import nn

import phalanx as px

DOCUMENTS = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")


def document(client):
    text = getattr(datasets, f"load_{DOCUMENTS[client]}")().DESCR
    ids = torch.tensor([min(ord(character), 127) for character in text]).unfold(0, 33, 16)
    lines = [{"ids": line[:-1], "following": line[1:]} for line in ids]
    return lines[:-5], lines[-5:]


class Characters(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.gru, self.out = nn.Embedding(128, 16), nn.GRU(16, 64, batch_first=True), nn.Linear(64, 128)

    def forward(self, ids):
        return self.out(self.gru(self.embedding(ids))[0])


def loss(scores, following):
    return nn.functional.cross_entropy(scores.flatten(0, 1), following.flatten())


def bits(scores, following):
    return loss(scores, following) / torch.tensor(2.0).log()


local = px.federated.local_training(px.optim.adam(0.01), batch=16)
task = px.training.task(loss, (px.training.metric("bits", bits, False, "bits a character"),), targets="following")
phase = px.federated.fedavg(local, rounds=5, rule=px.aggregators.centered_clip(tau=10.0))
clients = {"data": px.data.client_datasets(document), "partition": px.data.by_client(), "workers": 6}
run = px.Run(model=px.models.custom(Characters), phases=(phase,), task=task, **clients)

if __name__ == "__main__":
    print(px.train(run).summary()["client_metrics"])

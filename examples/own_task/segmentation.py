# SPDX-License-Identifier: Apache-2.0
"""Segmentation with a small U-Net: client i has noisy images of the digit i, and finds the ink in them."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import phalanx as px


def digit(client):
    table, labels = load_digits(return_X_y=True)
    images = torch.tensor(table[labels == client]).float().reshape(-1, 8, 8) / 16
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(client))
    data = TensorDataset((images + 0.3 * noise).unsqueeze(1), (images > 0.5).long())
    return torch.utils.data.random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x):
        wide = self.down(x).relu()
        deep = self.deep(nn.functional.max_pool2d(wide, 2)).relu()
        return self.out(torch.cat([wide, self.up(deep).relu()], dim=1))


phase = px.federated.fedavg(px.federated.local_training(px.optim.adam(0.01)), rounds=5, rule=px.aggregators.median())
clients = {"data": px.data.client_datasets(digit), "partition": px.data.by_client(), "workers": 10}
run = px.Run(model=px.models.custom(UNet), phases=(phase,), task=px.training.segmentation(), **clients)

if __name__ == "__main__":
    print(px.train(run).summary()["client_metrics"])

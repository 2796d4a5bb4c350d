# SPDX-License-Identifier: Apache-2.0
"""Data sets, models and functions of a user, for tests of own data and tasks."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset, TensorDataset

SLOPES = torch.tensor([[2.0], [-1.0], [0.5]])


def numbers(count: int, seed: int) -> TensorDataset:
    """Lines of a table (count, 3) and a target (count, 1) that is linear in them."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=rng)
    return TensorDataset(x, x @ SLOPES + 0.1 * torch.randn(count, 1, generator=rng))


def table() -> tuple[TensorDataset, TensorDataset]:
    return numbers(60, 1), numbers(30, 2)


def clinic(client: int) -> tuple[TensorDataset, TensorDataset]:
    return numbers(10 + client, 10 + client), numbers(3 + client, 50 + client)


def clinics() -> list[tuple[TensorDataset, TensorDataset]]:
    return [clinic(i) for i in range(4)]


class Dicts(Dataset):
    """The same table as dictionaries of numpy arrays, one example after the other."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        x, y = self.data[i]
        return {"x": x.numpy(), "label": y.numpy()}


def dictionaries() -> tuple[Dicts, Dicts]:
    train, test = table()
    return Dicts(train), Dicts(test)


class Noisy(Dataset):
    """Draws from all three global generators at each access."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[torch.Tensor, float]:
        noise = torch.rand(()) + random.random() + np.random.rand()
        return torch.tensor([float(i), 1.0, float(noise)]), i / 40


def noisy() -> tuple[Noisy, Noisy]:
    return Noisy(), Noisy()


def linear() -> nn.Module:
    return nn.Linear(3, 1)


class ByName(nn.Module):
    """A model that takes its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def mae(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean()


def evaluate(model, loader, context):
    return {"auc": 0.5}


def train(model, loader, context):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()


def subset() -> tuple[Subset, Subset]:
    train_part, test_part = table()
    return Subset(train_part, range(0, 60, 2)), Subset(test_part, range(10))


LOADED: set[int] = set()


class NoisyNumbers(Dataset):
    """Random examples of one client, from all three global generators."""

    def __init__(self, client: int) -> None:
        LOADED.add(client)
        self.client = client

    def __len__(self) -> int:
        return 6 + self.client

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(1) + random.random() + np.random.rand()
        return torch.tensor([i / 10, self.client / 10, float(noise)]), torch.tensor([i / 5 - 0.5])


def noisy_clinic(client: int) -> tuple[NoisyNumbers, NoisyNumbers]:
    return NoisyNumbers(client), NoisyNumbers(client)


def count_loaded(model, loader, context):
    """The error, and how many clients' data this process has loaded."""
    error, count = 0.0, 0
    for x, y in loader:
        error, count = error + float((model(x) - y).abs().sum()), count + len(x)
    return {"error": error / count, "loaded": len(LOADED)}

# SPDX-License-Identifier: Apache-2.0
"""What an excerpt in the documentation takes for granted; `<!-- setup: name -->` above a block asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import phalanx

SETUPS: dict[str, Callable[[], dict[str, Any]]] = {}


def setup(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Makes a function known by its name."""
    SETUPS[function.__name__] = function
    return function


@setup
def loop() -> dict[str, Any]:
    """A training loop of a job with one process."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
    net = nn.Linear(8, 3)
    batches = [(torch.randn(4, 8), torch.randint(3, (4,)))]
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    names = {"Net": lambda: net, "batches": batches, "loss": nn.functional.cross_entropy, "optimizer": optimizer}
    return {"phalanx": phalanx, "dist": dist, "torch": torch, **names}


@setup
def job() -> dict[str, Any]:
    """The same, with its process group and its model."""
    names = loop()
    dist.init_process_group("gloo")
    return {**names, "model": names["Net"]()}


@setup
def ddp_model() -> dict[str, Any]:
    """A wrapped model, in the group that the page has made."""
    return {"ddp_model": DistributedDataParallel(nn.Linear(8, 3))}


@setup
def ddp_job() -> dict[str, Any]:
    """A job with its group and a wrapped model."""
    names = job()
    wrapped = DistributedDataParallel(names["model"])
    return {**names, "ddp_model": wrapped}


@setup
def dense_model() -> dict[str, Any]:
    """A model with matrices that are worth factorizing, and its optimizer."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)}


@setup
def trained_apart() -> dict[str, Any]:
    """Networks of the same shape, and layers as plain tensors."""
    models = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)]
    layers = {"weights_here": torch.randn(5, 7), "weights_there": torch.randn(5, 7)}
    return {"models": models, "example_input": torch.zeros(2, 6), **layers}

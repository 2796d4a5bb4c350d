# SPDX-License-Identifier: Apache-2.0
"""Classes that differ by colour in the training part and not in the test part: figure 5.4."""

from __future__ import annotations

from dataclasses import dataclass, replace

import phalanx as px
from phalanx.data.dataset import Data
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.federated import bias_tables, plot_methods
from phalanx_experiments.recipes.fedma import NETS, Net

CLIENTS = 2  # one has the classes that are mostly gray, the other the colourful ones


@dataclass(frozen=True)
class Lengths:
    """The network, and how long each method trains it.

    Args:
        net: on the images from which the skewed ones are made.
        epochs: on all data.
        passes: of FedMA; FedAvg and FedProx have as many rounds as these have together.
        averaged, matched: epochs of clients in a round, of FedAvg and FedProx and of FedMA.
    """

    net: Net
    epochs: int
    passes: int
    averaged: int
    matched: int


_SMALL = Net(
    px.data.cifar10(train=400, test=200, size=16),
    px.models.vgg9(0.1, 0.0),
    layers=9,
    workers=CLIENTS,
    local=px.federated.local_training(px.optim.sgd(0.02, momentum=0.9), batch=32, own=True),
)
# section 5.4.6; the text is silent on the rounds
LENGTHS = {
    "smoke": Lengths(_SMALL, 3, 1, 1, 1),
    "laptop": Lengths(NETS["laptop"]["VGG-9"], 20, 1, 5, 10),
    "paper": Lengths(NETS["paper"]["VGG-9"], 200, 6, 5, 50),
}


def centralised(net: Net, data: Data, epochs: int) -> Run:
    """Training on all data as one client that keeps its optimizer; a round is an epoch."""
    local = replace(net.local, epochs=1, own=False, keep=True)
    return net.run(
        px.federated.fedavg(local, epochs), data=data, workers=1, partition=px.data.iid(), evaluate_every=epochs
    )


@recipe("fedma-bias", plot=plot_methods, tables=bias_tables)
def fedma_bias(scale: str) -> dict[str, Run]:
    """Figure 5.4: half of the classes nearly all grayscale; training on all data against two clients."""
    lengths = LENGTHS[scale]
    net, rounds = lengths.net, lengths.passes * lengths.net.layers
    skewed = px.data.grayscale(net.data)
    whole = {
        "entire data": skewed,
        "oversampling": px.data.grayscale(net.data, oversampled=True),
        "colour balanced": px.data.grayscale(net.data, minor=0.5),
        "no bias": net.data,
    }
    jobs = {name: centralised(net, data, lengths.epochs) for name, data in whole.items()}
    phases = {
        "FedAvg": net.fedavg(rounds, lengths.averaged),
        "FedProx": net.fedprox(rounds, lengths.averaged),
        "FedMA": net.fedma(lengths.passes, lengths.matched),
    }
    for name, phase in phases.items():
        fields = {"data": skewed, "workers": CLIENTS, "partition": px.data.by_owner(), "evaluate_every": net.layers}
        jobs[name] = net.run(phase, **fields)
    return jobs

# SPDX-License-Identifier: Apache-2.0
"""The gain of FedMA and of FedAvg from more clients with data of their own: figure 5.5."""

from __future__ import annotations

from dataclasses import replace

import phalanx as px
from phalanx.tools.runner.recipe import recipe
from phalanx.training.phase import Run
from phalanx_experiments.figures.sweep import plot_sweep, sweep_tables
from phalanx_experiments.recipes.fedma import NETS

EACH = 5  # clients that come with a piece of the data
# the network, how many pieces there are, and epochs of a client
STEPS = {"smoke": ("MLP", 2, 2), "laptop": ("LeNet", 5, 5), "paper": ("VGG-9", 5, 20)}


@recipe("fedma-clients", plot=plot_sweep, tables=sweep_tables)
def fedma_clients(scale: str) -> dict[str, Run]:
    """Figure 5.5: one pass of FedMA against as many rounds of FedAvg while clients, each with its data, join."""
    name, pieces, epochs = STEPS[scale]
    partition = px.data.nested(px.data.dirichlet(0.5, least=10), pieces=pieces, each=EACH)
    net = replace(NETS[scale][name], uneven=partition)
    runs: dict[str, Run] = {}
    for workers in range(EACH, EACH * pieces + 1, EACH):
        for method, phase in {"FedAvg": net.fedavg(epochs=epochs), "FedMA": net.fedma(epochs=epochs)}.items():
            run = net.run(phase, workers=workers, evaluate_every=net.layers)
            runs[f"{workers} clients: {method}"] = run
    return runs

# SPDX-License-Identifier: Apache-2.0
"""FedMA with one pass against other methods with as few rounds: figure 5.1."""

from __future__ import annotations

import phalanx as px
from phalanx.data.partition import Partition
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.federated import federated_tables, plot_methods
from phalanx_experiments.recipes.fedma import NETS, Net

CONTROL = "FedMA without matching"
# found on LeNet with the seeds 0, 1 and 2: variances so small that a neuron that training has made long finds no copy,
# and few of those
CALIBRATED = px.matching.bbp(gamma=0.1, sigma=0.1, bias_mean=0.0, average="plain")


def methods(net: Net, partition: Partition) -> dict[str, Job]:
    """The methods that are compared; the first round of FedAvg is the plain average."""
    plain = px.matching.bbp(gamma=net.gamma, average="plain")
    phases = {
        "FedAvg": net.fedavg(),
        "FedProx": net.fedprox(),
        "PFNM": net.pfnm(),
        "PFNM, plain mean": net.pfnm(plain),
        "PFNM, calibrated": net.pfnm(CALIBRATED, outgoing=True),
        "FedMA": net.fedma(),
        CONTROL: net.fedma(matcher=px.matching.identity()),
    }
    runs = {name: net.run(phase, partition=partition) for name, phase in phases.items()}
    return {"local models": net.alone(partition=partition), **runs}


@recipe("fedma-oneshot", plot=plot_methods, tables=federated_tables)
def fedma_oneshot(scale: str) -> dict[str, Job]:
    """Figure 5.1: one pass of FedMA against local models, their ensemble, PFNM, and FedAvg and FedProx as long."""
    jobs: dict[str, Job] = {}
    for name, net in NETS[scale].items():
        for word, partition in (("heterogeneous", net.uneven), ("homogeneous", px.data.iid())):
            for method, job in methods(net, partition).items():
                # where clients are alike the control shows the same, at the same price
                if word == "heterogeneous" or method != CONTROL:
                    jobs[f"{name}, {word}: {method}"] = job
    return jobs

# SPDX-License-Identifier: Apache-2.0
"""Filters of two clients that FedMA matches, their average, and those of FedAvg: figure 5.6."""

from __future__ import annotations

import phalanx as px
import phalanx_experiments as pe
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.filters import filter_tables, plot_filters
from phalanx_experiments.recipes.fedma import NETS, UNEVEN

HORSE = 13  # in CIFAR-10's test part


@recipe("fedma-filters", plot=plot_filters, tables=filter_tables)
def fedma_filters(scale: str) -> dict[str, Job]:
    """Figure 5.6: outputs of matched filters, of their average and of FedAvg's filter on an image of a horse."""
    if scale == "smoke":
        data = px.data.cifar10(train=400, test=200, size=16)
        local = px.federated.local_training(px.optim.sgd(0.02, momentum=0.9), batch=32, own=True)
        return {"two clients": pe.matched_filters(data, px.models.vgg9(0.25, 0.0), UNEVEN, local)}
    net = NETS[scale]["VGG-9"]
    return {"two clients": pe.matched_filters(net.data, net.model, UNEVEN, net.local, image=HORSE)}

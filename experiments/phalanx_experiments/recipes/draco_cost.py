# SPDX-License-Identifier: Apache-2.0
"""The cost of the codes in each round: tables 6.5 to 6.7 and figure 6.3."""

from __future__ import annotations

import phalanx as px
import phalanx_experiments as pe
from phalanx.models.model import Model
from phalanx.tools.runner.measurement import Job
from phalanx.tools.runner.recipe import recipe
from phalanx_experiments.figures.iteration_cost import iteration_cost_tables, plot_iteration_cost

# by the labels under which the report looks up the published numbers
NETWORKS: dict[str, Model] = {
    "ResNet-152": px.models.resnet152(),
    "VGG-19": px.models.vgg19_bn(),
    "AlexNet": px.models.alexnet(),
}
REPEATS = {"laptop": 1, "paper": 10}


@recipe("draco-cost", plot=plot_iteration_cost, tables=iteration_cost_tables)
def draco_cost(scale: str) -> dict[str, Job]:
    """Tables 6.5 to 6.7, figure 6.3: computation, communication, encoding and decoding of a round of 45 workers."""
    if scale == "smoke":
        small: dict[str, Model] = {"MLP": px.models.mlp((16,)), "CNN": px.models.cnn(channels=(8, 16))}
        return {
            name: pe.iteration_cost(px.data.digits(), model, workers=9, s=1, batch=36) for name, model in small.items()
        }
    return {
        name: pe.iteration_cost(px.data.cifar10(), model, repeats=REPEATS[scale]) for name, model in NETWORKS.items()
    }

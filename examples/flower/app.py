# SPDX-License-Identifier: Apache-2.0
"""Federated averaging, plain or matched, on Flower; README.md has the command."""

from collections.abc import Mapping
from typing import Any

import phalanx as px
from phalanx.integrations.flower import client_app, server_app


def run(config: Mapping[str, Any]) -> px.Run:
    """What is trained, by the run config: the same expression at the server and at every client."""
    local = px.federated.local_training(px.optim.sgd(lr=0.1, momentum=0.9), epochs=2, batch=20)
    if config["method"] == "fedma":
        # two layers have weights, and a pass takes a round for each
        phase = px.federated.fedma(local, layers=2, passes=max(1, config["rounds"] // 2))
    else:
        phase = px.federated.fedavg(local, config["rounds"], rule=px.aggregators.trimmed_mean(f=1))
    return px.Run(
        px.data.digits(),
        px.models.mlp(hidden=(32,)),
        (phase,),
        workers=config["clients"],
        partition=px.data.dirichlet(alpha=1.0),
        evaluate_every=1,
        checkpoint_every=2,
    )


# Flower finds these two by name: each is a plain assignment
server = server_app(run)
client = client_app(run)

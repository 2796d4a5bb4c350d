# SPDX-License-Identifier: Apache-2.0
"""A small federated setting under attack: the digits of scikit-learn and their rare styles."""

import phalanx as px
from phalanx.tools.redteam.setting import Setting


def setting() -> Setting:
    """41 clients, ten of them in a round, that begin with a network which one worker has trained."""
    start = px.Phase(px.training.gradient(32), px.reduce(px.codecs.dense()), px.optim.sgd(0.05, momentum=0.9), 60)
    first = px.Run(px.data.digits(), px.models.mlp((32,)), (start,), workers=1, evaluate_every=60, checkpoint_every=60)
    optimizer = px.optim.sgd(0.1, momentum=0.9, weight_decay=1e-4, schedule=px.optim.decay(0.998))
    return Setting(
        px.data.digits(),
        px.backdoors.rare_styles(),
        px.training.pretrained(first, drawn=True),
        workers=41,
        clients=10,
        local=px.federated.local_training(optimizer, epochs=2, batch=10),
        epochs=4,
        norm=0.8,
        rounds=8,
        every=2,
        often=8,
        clean=30,
    )

# SPDX-License-Identifier: Apache-2.0
"""The networks of chapter 5, their clients, and the methods that combine the clients' networks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import phalanx as px
import phalanx_experiments as pe
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.data.partition import Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.matching.matching import Matcher
from phalanx.models.model import Model
from phalanx.training.phase import Phase, Run

UNEVEN = px.data.dirichlet(0.5, least=10)


@dataclass(frozen=True)
class Net:
    """A network, its data, and how its clients train it.

    Args:
        layers: with weights; a pass of FedMA has as many rounds.
        local: of every client, each from an initialization of its own (section 5.4.1).
        gamma: of the matcher.
        last: how FedMA trains the last layer, as in `fedma`.
        uneven: the partition whose clients differ.
    """

    data: Data
    model: Model
    layers: int
    workers: int
    local: LocalTraining
    gamma: float = 7.0
    last: Literal["published"] | None = "published"
    uneven: Partition = UNEVEN
    augment: Augment | None = None

    def trained(self, epochs: int | None = None) -> LocalTraining:
        """How clients train, with another number of epochs if one is given."""
        return self.local if epochs is None else replace(self.local, epochs=epochs)

    def fedavg(self, rounds: int | None = None, epochs: int | None = None) -> Phase:
        """FedAvg; it has as many rounds as a pass of FedMA unless `rounds` is given."""
        return px.federated.fedavg(self.trained(epochs), rounds or self.layers)

    def fedprox(self, rounds: int | None = None, epochs: int | None = None) -> Phase:
        """FedProx with the published mu, for as many rounds as `fedavg`."""
        return px.federated.fedprox(self.trained(epochs), rounds or self.layers)

    def pfnm(self, matcher: Matcher | None = None, outgoing: bool = False) -> Phase:
        """PFNM, with the published matcher unless another is given."""
        return px.federated.pfnm(self.local, matcher=matcher or px.matching.bbp(gamma=self.gamma), outgoing=outgoing)

    def fedma(self, passes: int = 1, epochs: int | None = None, matcher: Matcher | None = None) -> Phase:
        """FedMA, with the published matcher and the plain mean unless another matcher is given."""
        rule = matcher or px.matching.bbp(gamma=self.gamma, average="plain")
        return px.federated.fedma(self.trained(epochs), self.layers, passes, last=self.last, matcher=rule)

    def run(self, phase: Phase, **fields: Any) -> Run:
        """A run of one phase, tested whenever it has a whole model; `fields` replace those of the network."""
        return px.Run(
            **{
                "data": self.data,
                "model": self.model,
                "phases": (phase,),
                "workers": self.workers,
                "partition": self.uneven,
                "augment": self.augment,
                "evaluate_every": 1,
                "checkpoint_every": 1,
                **fields,
            }
        )

    def alone(self, **fields: Any) -> pe.local_models:
        """A measurement of the clients alone and of their ensemble."""
        return pe.local_models(
            **{
                "data": self.data,
                "model": self.model,
                "workers": self.workers,
                "partition": self.uneven,
                "local": self.local,
                "augment": self.augment,
                **fields,
            }
        )


def _local(lr: float, epochs: int, batch: int, momentum: float = 0.9, weight_decay: float = 0.0) -> LocalTraining:
    optimizer = px.optim.sgd(lr, momentum=momentum, weight_decay=weight_decay)
    return px.federated.local_training(optimizer, epochs=epochs, batch=batch, own=True)


# table 5.3 and section 5.4.4; the text names neither batches nor the epochs of figure 5.1. A batch of passages is one
# of some hundred characters; the roles with the most passages are the laptop's clients
NETS = {
    "smoke": {"MLP": Net(px.data.digits(), px.models.mlp((16,)), 2, 4, _local(0.1, 2, 20))},
    "laptop": {
        "LeNet": Net(px.data.mnist(train=16_000), px.models.lenet(), 4, 16, _local(0.01, 5, 64)),
        "VGG-9": Net(
            px.data.cifar10(train=10_000, size=16),
            px.models.vgg9(width=0.25),
            9,
            4,
            _local(0.01, 8, 64),
            augment=px.data.crop_flip(pad=2),
        ),
        "LSTM": Net(
            px.data.shakespeare(roles=24),
            px.models.char_lstm(width=64),
            3,
            12,
            _local(0.8, 10, 2, momentum=0.0),
            gamma=0.001,
            last=None,
            uneven=px.data.by_owner(),
        ),
    },
    "paper": {
        "LeNet": Net(px.data.mnist(), px.models.lenet(), 4, 16, _local(0.01, 20, 64, weight_decay=1e-4)),
        "VGG-9": Net(
            px.data.cifar10(),
            px.models.vgg9(),
            9,
            16,
            _local(0.01, 20, 64, weight_decay=1e-4),
            augment=px.data.crop_flip(),
        ),
        "LSTM": Net(
            px.data.shakespeare(length=1, context=79),
            px.models.char_lstm(),
            3,
            66,
            _local(0.8, 5, 50, momentum=0.0),
            gamma=0.001,
            last=None,
            uneven=px.data.by_owner(),
        ),
    },
}

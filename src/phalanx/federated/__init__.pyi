# SPDX-License-Identifier: Apache-2.0
from phalanx.federated.ball import Ball as ball
from phalanx.federated.custom_training import CustomTraining as custom_training
from phalanx.federated.layerwise import Layerwise as layerwise
from phalanx.federated.local_training import LocalTraining as local_training
from phalanx.federated.methods import diloco as diloco
from phalanx.federated.methods import fedadam as fedadam
from phalanx.federated.methods import fedavg as fedavg
from phalanx.federated.methods import fedavgm as fedavgm
from phalanx.federated.methods import fedma as fedma
from phalanx.federated.methods import fedprox as fedprox
from phalanx.federated.methods import pfnm as pfnm
from phalanx.training.client_sampler import Uniform as uniform
from phalanx.training.client_sampler import WithAttackers as with_attackers
from phalanx.training.client_sampler import WithFixed as with_fixed

__all__ = [
    "ball",
    "custom_training",
    "diloco",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedma",
    "fedprox",
    "layerwise",
    "local_training",
    "pfnm",
    "uniform",
    "with_attackers",
    "with_fixed",
]

# SPDX-License-Identifier: Apache-2.0
from phalanx.training.client_sampler import AllClients as all_clients
from phalanx.training.client_sampler import ClientSampler as ClientSampler
from phalanx.training.client_work import ClientWork as ClientWork
from phalanx.training.client_work import Gradient as gradient
from phalanx.training.evaluator import Evaluator as Evaluator
from phalanx.training.observers.norms import Norms as norms
from phalanx.training.observers.observer import Observer as Observer
from phalanx.training.observers.spectrum import Spectrum as spectrum
from phalanx.training.observers.variance import Variance as variance
from phalanx.training.parity import Parity as parity
from phalanx.training.phase import amend as amend
from phalanx.training.pretrained import Pretrained as pretrained
from phalanx.training.run_folder import RunFolder as RunFolder

__all__ = [
    "ClientSampler",
    "ClientWork",
    "Evaluator",
    "Observer",
    "RunFolder",
    "all_clients",
    "amend",
    "gradient",
    "norms",
    "parity",
    "pretrained",
    "spectrum",
    "variance",
]

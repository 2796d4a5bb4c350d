# SPDX-License-Identifier: Apache-2.0
from phalanx.training.client_sampler import Selection as ClientSampler
from phalanx.training.client_sampler import Everyone as all_clients
from phalanx.training.client_work import Work as ClientWork
from phalanx.training.client_work import Gradient as gradient
from phalanx.training.evaluator import Exam as Evaluator
from phalanx.training.observers.norms import Norms as norms
from phalanx.training.observers.observer import Observer as Observer
from phalanx.training.observers.spectrum import Spectrum as spectrum
from phalanx.training.observers.variance import Variance as variance
from phalanx.training.parity import Parity as parity
from phalanx.training.phase import amend as amend
from phalanx.training.pretrained import Trained as pretrained
from phalanx.training.run_folder import RunFolder as RunFolder

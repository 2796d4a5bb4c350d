# SPDX-License-Identifier: Apache-2.0
from phalanx.training.client_sampler import AllClients as all_clients
from phalanx.training.client_sampler import ClientSampler as ClientSampler
from phalanx.training.client_work import ClientWork as ClientWork
from phalanx.training.client_work import Gradient as gradient
from phalanx.training.early_stopping import EarlyStopping as early_stopping
from phalanx.training.evaluator import Evaluator as Evaluator
from phalanx.training.observers.norms import Norms as norms
from phalanx.training.observers.observer import Observer as Observer
from phalanx.training.observers.spectrum import Spectrum as spectrum
from phalanx.training.observers.variance import Variance as variance
from phalanx.training.parity import Parity as parity
from phalanx.training.phase import amend as amend
from phalanx.training.pretrained import Pretrained as pretrained
from phalanx.training.run_folder import RunFolder as RunFolder
from phalanx.training.task import Metric as metric
from phalanx.training.task import Task as Task
from phalanx.training.task import TaskContext as TaskContext
from phalanx.training.tasks import Classification as classification
from phalanx.training.tasks import FunctionTask as task
from phalanx.training.tasks import MultiLabel as multi_label
from phalanx.training.tasks import Regression as regression
from phalanx.training.tasks import Segmentation as segmentation

__all__ = [
    "ClientSampler",
    "ClientWork",
    "Evaluator",
    "Observer",
    "RunFolder",
    "Task",
    "TaskContext",
    "all_clients",
    "amend",
    "classification",
    "early_stopping",
    "gradient",
    "metric",
    "multi_label",
    "norms",
    "parity",
    "pretrained",
    "regression",
    "segmentation",
    "spectrum",
    "task",
    "variance",
]

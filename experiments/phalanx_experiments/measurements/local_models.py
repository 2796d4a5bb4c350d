# SPDX-License-Identifier: Apache-2.0
"""Accuracy of clients that train alone, and of all of them as an ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, Literal

from torch import Tensor

from phalanx.core.expression import method
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.data.partition import Iid, Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.federated.methods import fedavg
from phalanx.models.model import Model
from phalanx.tools.runner.measurement import Measurement
from phalanx.training.phase import Run
from phalanx.training.score import scored
from phalanx.training.trainer import Trainer


@method("local_models", "measurement")
class LocalModels(Measurement):
    """The test accuracy of every client's own network, the mean of these, and the accuracy of the ensemble.

    The clients are those of the first round of `fedavg(local)`, `pfnm(local)` or `fedma(local)` in a run of the same
    fields, each from an initialization of its own: the networks that the methods average and match.

    Args:
        workers: clients.
        local: how a client trains.
    Source: the local models and the ensemble of Wang et al., Federated Learning with Matched Averaging, 2020,
        arXiv:2002.06440, section 4. As published; the size is that of all networks together.
    """

    data: Data
    model: Model
    workers: int
    partition: Partition = Iid()
    local: LocalTraining = LocalTraining()
    augment: Augment | None = None
    precision: Literal["float32", "bf16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    seed: int = 0

    @property
    def run(self) -> Run:
        """The run whose first round trains the clients."""
        phase = fedavg(replace(self.local, own=True), rounds=1)
        return Run(
            self.data,
            self.model,
            (phase,),
            self.workers,
            partition=self.partition,
            augment=self.augment,
            seed=self.seed,
            precision=self.precision,
            device=self.device,
            threads=self.threads,
        )

    def validate(self) -> None:
        self.run.check()

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        trainer = Trainer(self.run)
        layout, model = trainer.layout, trainer.model
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        accuracies: list[float] = []
        together: list[Tensor] = []
        labels: list[Tensor] = []
        for client in range(self.workers):
            on_progress(f"client {client + 1} of {self.workers}")
            stack, _ = trainer.compute_rows(0, (client,))
            parts = layout.split(stack.rows[0])
            weights = {n: part if n in layout.installed else start[n] - part for n, part in parts.items()}
            model.load_state_dict({**start, **weights})
            tested = list(scored(model, trainer.data, trainer.device, self.precision))
            guesses, labels = [scores.softmax(dim=-1) for scores, _ in tested], [y for _, y in tested]
            accuracies.append(_accuracy(guesses, labels))
            together = [a + b for a, b in zip(together, guesses, strict=True)] if together else guesses
            model.load_state_dict(start)
        return {
            "accuracies": accuracies,
            "mean": mean(accuracies),
            "ensemble": _accuracy(together, labels),
            "parameters": self.workers * trainer.model_state.num_parameters,
            "bytes_up": self.workers * layout.d * layout.dtype.itemsize,
            "local_epochs": self.local.num_epochs(0),
        }


def _accuracy(guesses: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """The share of labels that are the likeliest class; labels of -100 do not count."""
    right = sum(int((g.argmax(dim=-1) == y).sum()) for g, y in zip(guesses, labels, strict=True))
    return right / sum(int((y >= 0).sum()) for y in labels)

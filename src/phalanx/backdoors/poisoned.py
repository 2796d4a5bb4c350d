# SPDX-License-Identifier: Apache-2.0
"""What an attacker trains on: edge cases with the wrong label among ordinary examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from phalanx.backdoors.edges import EdgeCases
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.round import make_generator
from phalanx.core.trees import State
from phalanx.data.dataset import Data, Dataset, labelled
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.federated.local_training import LocalTraining
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext
from phalanx.training.task import Task


@method("poisoned", "client_work")
class Poisoned(ClientWork):
    """Training of an attacker on edge cases with the label that it wants, mixed with ordinary examples.

    This is the black-box attack. With `local_training(ball=ball(...))` it is the attack by projected gradients, and
    `replacement()` before the wire scales its rows up. Give it to a phase as `adversary`. The mixture is the same in
    every round, and the attacker claims its size as the number of its examples.

    Args:
        local: how the attacker trains.
        edges: the examples, and the label that the attacker wants.
        data: the data set that the edge cases belong to, without edge cases of honest clients.
        clean: ordinary examples with right labels from the training part, drawn once from the run's seed, >= 0.
        amount: edge cases of the mixture, the first ones; None takes all.
        mix: adds the ordinary examples that were published with the edge cases, if any.
    Source: Wang et al., Attack of the Tails: Yes, You Really Can Backdoor Federated Learning, 2020, arXiv:2007.05084,
        section 3.
    """

    local: LocalTraining
    edges: EdgeCases
    data: Data
    clean: int = 400
    amount: int | None = None
    mix: bool = True

    def validate(self) -> None:
        require(self.clean >= 0, f"poisoned needs clean >= 0, got clean={self.clean}")
        require(self.amount is None or self.amount >= 1, f"poisoned needs amount >= 1, got amount={self.amount}")

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return [torch.arange(len(self.mixture(labelled(data, self), seed).train_y))] * units

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        return self.local.layout(models, round_in_phase)

    def check(self, models: ModelProvider, rounds: int) -> None:
        self.local.check(models, rounds)

    def check_task(self, task: Task) -> None:
        require(task.has_classes, f"{self!r} plants wrong labels, and {task!r} has no classes")
        self.local.check_task(task)

    @property
    def stateful(self) -> bool:
        return self.local.stateful

    @property
    def matched(self) -> bool:
        return self.local.matched

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        seed = context.key[0]
        assert isinstance(seed, int)
        poisoned = replace(context, data=self.mixture(labelled(context.data, self), seed))
        return self.local.compute_row(poisoned, unit, samples, out, memory)

    def mixture(self, data: Dataset, seed: int) -> Dataset:
        """What the attacker trains on, as the training part of the data that honest clients have."""
        return _mixture(self, data, seed)


@lru_cache(maxsize=4)
def _mixture(work: Poisoned, data: Dataset, seed: int) -> Dataset:
    edges = work.edges.load(work.data.load())
    amount = len(edges) if work.amount is None else work.amount
    require(amount <= len(edges), f"{work!r} wants {amount} edge cases, and there are {len(edges)}")
    total = len(data.train_y)
    require(work.clean <= total, f"{work!r} wants {work.clean} ordinary examples, and there are {total}")
    some = torch.randperm(total, generator=make_generator("poisoned", seed))[: work.clean]
    x, y = [edges.train_x[:amount], data.train_x[some]], [edges.train_y[:amount], data.train_y[some]]
    if work.mix and edges.mix is not None:
        x.append(edges.mix[0])
        y.append(edges.mix[1])
    return replace(data, train_x=torch.cat(x), train_y=torch.cat(y), owners=None, added=0)

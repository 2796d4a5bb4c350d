# SPDX-License-Identifier: Apache-2.0
"""An attacker that trains as others do, on its own examples with wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.trees import State
from phalanx.data.dataset import Dataset, labelled
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition
from phalanx.training.client_work import ClientWork
from phalanx.training.context import ModelProvider, WorkerContext
from phalanx.training.task import Task


@method("label_flip", "client_work")
class LabelFlip(ClientWork):
    """Work on the worker's own examples with label C - 1 - y in place of y, or with one class called another.

    Give it to a phase as `adversary`. Labels of -100 stay.

    Args:
        work: how the attacker trains, such as `gradient(...)` or `local_training(...)`.
        source: the class that is called `target`; None flips all labels.
        target: needed with `source`.
    Source: Tolpegin et al., Data poisoning attacks against federated learning systems, 2020, arXiv:2007.08432 (one
        class); Fang et al., Local Model Poisoning Attacks, 2020, arXiv:1911.11815, section 5.1 (C - 1 - y).
    """

    work: ClientWork
    source: int | None = None
    target: int | None = None

    def validate(self) -> None:
        both = (self.source is None) == (self.target is None)
        require(
            both and (self.source is None or self.source != self.target),
            f"label_flip needs two classes or none, got source={self.source}, target={self.target}",
        )

    def samples(self, partition: Partition, data: Examples, units: int, index: int, seed: int) -> Sequence[Tensor]:
        return self.work.samples(partition, data, units, index, seed)

    def layout(self, models: ModelProvider, round_in_phase: int) -> Layout:
        return self.work.layout(models, round_in_phase)

    def check(self, models: ModelProvider, rounds: int) -> None:
        self.work.check(models, rounds)

    def check_task(self, task: Task) -> None:
        require(
            task.has_classes, f"{self!r} gives examples of one class the label of another, and {task!r} has no classes"
        )
        self.work.check_task(task)

    @property
    def stateful(self) -> bool:
        return self.work.stateful

    @property
    def matched(self) -> bool:
        return self.work.matched

    def compute_row(
        self, context: WorkerContext, unit: int, samples: Tensor, out: Tensor, memory: State
    ) -> tuple[float, State]:
        flipped = replace(context, data=_flipped(self, labelled(context.data, self)))
        return self.work.compute_row(flipped, unit, samples, out, memory)


@lru_cache(maxsize=4)
def _flipped(attack: LabelFlip, data: Dataset) -> Dataset:
    """The data set with wrong labels in its training part."""
    y, classes = data.train_y, data.num_classes
    if attack.source is None or attack.target is None:
        wrong = torch.where(y >= 0, classes - 1 - y, y)
    else:
        for label in (attack.source, attack.target):
            require(0 <= label < classes, f"{attack!r} has a label {label}, and {data.name} has {classes} classes")
        wrong = torch.where(y == attack.source, attack.target, y)
    return replace(data, train_y=wrong)

# SPDX-License-Identifier: Apache-2.0
"""Measurements of a model whenever it is tested, besides its accuracy on the test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core.expression import Expression
from phalanx.data.dataset import Dataset
from phalanx.data.examples import Batch, Examples, map_tensors
from phalanx.training.context import seeded
from phalanx.training.score import scores_of
from phalanx.training.task import Task, TaskContext, try_task
from phalanx.training.tasks import Classification


@dataclass(frozen=True)
class EvalContext:
    """A model that is tested, and what an evaluator may know of its run.

    Args:
        parts: returns the training samples of each worker.
        task: what the model is trained for.
        round_index: number of the round in the run, from 0.
    """

    model: nn.Module
    data: Examples
    workers: int
    seed: int
    precision: str
    parts: Callable[[], Sequence[Tensor]]
    task: Task = field(default_factory=Classification)
    round_index: int = 0

    def measure(self, samples: Tensor, tested: bool, client: int | None = None) -> dict[str, float]:
        """The loss and the task's metrics on some examples of the training part, or of the test part."""
        device = next(self.model.parameters()).device
        return measure_on(
            self.task,
            self.model,
            self.data,
            samples,
            tested,
            TaskContext(
                device=device,
                precision=self.precision,
                client=client,
                round_index=self.round_index,
                seed=self.seed,
            ),
        )

    def labels(self, x: Tensor) -> Tensor:
        """The labels that the model predicts, in evaluation mode, for inputs as `Dataset.inputs` gives them.

        Shapes: (B, ...) -> (B,), or (B, L) where every token has a label.
        """
        device = next(self.model.parameters()).device
        self.model.eval()
        pieces = x.split(self.data.test_batch)
        return torch.cat([scores_of(self.model, x.to(device), self.precision).argmax(dim=-1).cpu() for x in pieces])


class Evaluator(Expression, ABC):
    """A measurement of a model whenever it is tested; changes nothing.

    Its result is logged in metrics.jsonl under "examined", by the evaluator's expression. The last result is in the
    summary.
    """

    def check(self, data: Any) -> None:
        """Raises ValueError, before anything is computed, if it cannot measure models of such data."""
        return

    def check_task(self, task: Task) -> None:
        """Raises ValueError, before anything is computed, if it cannot measure models for such a task."""
        return

    @abstractmethod
    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        """Measures the model; returns plain values for JSON."""


class BatchesOf:
    """Batches of some examples, which can be iterated over more than once.

    Args:
        samples: numbers of the examples; None for the whole test part of the server.
        tested: whether they are of the test part.
    """

    def __init__(self, data: Examples, samples: Tensor | None, tested: bool, device: torch.device) -> None:
        self._data, self._samples, self._tested, self._device = data, samples, tested, device
        self._size = data.test_batch
        self._count = data.num_test if samples is None else len(samples)

    def __len__(self) -> int:
        return -(-self._count // self._size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, self._count, self._size):
            piece: Any = slice(start, start + self._size)
            piece = piece if self._samples is None else self._samples[piece]
            batch = self._data.test(piece) if self._tested else self._data.train(piece, key=("evaluated",))
            yield map_tensors(batch, lambda t: t.to(self._device))


def measure_on(
    task: Task,
    model: nn.Module,
    data: Examples,
    samples: Tensor | None,
    tested: bool,
    context: TaskContext,
    tried: set[str] | None = None,
) -> dict[str, float]:
    """The loss and all metrics of a task on some examples, or on the whole test part of the server if None.

    Args:
        tried: forms of batches on which the task was tried; other ones are tried before.
    """
    with seeded(context.device, "evaluation", context.seed, context.round_index, context.client):
        batches = BatchesOf(data, samples, tested, context.device)
        if tried is not None and not isinstance(data, Dataset) and len(batches):
            try_task(task, model, next(iter(batches)), context, tried)
        return task.measure(model, batches, context)


def share(right: Tensor) -> float | None:
    """The share of entries that are true; None if there are no entries. Shapes: (n,) bool -> scalar."""
    return float(right.double().mean()) if len(right) else None

# SPDX-License-Identifier: Apache-2.0
"""What a worker computes its row with: models, data and precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.round import make_generator
from phalanx.data.augment import Augment
from phalanx.data.dataset import Dataset
from phalanx.data.examples import Batch, Examples, map_tensors
from phalanx.training.task import Task, TaskContext, try_task
from phalanx.training.tasks import Classification

if TYPE_CHECKING:
    from phalanx.matching.graph import Graph


class ModelProvider(Protocol):
    """The models that client work may use."""

    @property
    def layout(self) -> Layout:
        """The layout of the current model."""
        ...

    @property
    def model(self) -> nn.Module:
        """The current model."""
        ...

    @property
    def graph(self) -> Graph:
        """The graph of the original model: which of its neurons can be permuted."""
        ...

    @property
    def is_first_round(self) -> bool:
        """Whether this is the first round of the run."""
        ...

    def original(self) -> nn.Module:
        """A model in the size that clients' own networks have, whose weights the caller loads."""
        ...

    def initial_weights(self, unit: int) -> dict[str, Tensor]:
        """The weights of an initialization of a client's own, in the original size."""
        ...


@dataclass
class WorkerContext:
    """What every worker of a round computes with: the model, the data, and how to compute.

    Args:
        layout: the layout of the rows.
        task: how a batch becomes a loss.
        key: the random numbers of this round depend on it and on the unit.
        models: other models than the current one: the original, and clients' own initial ones.
        seed, round_index: those of the run.
        round_in_phase: number of the round in its phase, which has `rounds` rounds.
        replies: what the server replied to single workers after the last round.
        tried: forms of batches on which the task has been tried in this process.
        trained_on: examples that count for a unit, where work did another part of it than all of its samples once.
    """

    model: nn.Module
    layout: Layout
    data: Examples
    augment: Augment | None
    precision: str
    channels_last: bool
    key: tuple[object, ...] = ()
    seed: int = 0
    round_index: int = 0
    models: ModelProvider | None = None
    round_in_phase: int = 0
    rounds: int = 1
    replies: Mapping[int, Payload] = field(default_factory=dict)
    task: Task = field(default_factory=Classification)
    tried: set[str] = field(default_factory=set)
    trained_on: dict[int, float] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the model by name; to search them for every worker takes as long as a small network."""
        return dict(self.model.named_parameters())

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the model by name."""
        return dict(self.model.named_buffers())

    @cached_property
    def _modules(self) -> list[nn.Module]:
        return list(self.model.modules())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(iter(self.parameters.values())).device

    def set_training_mode(self) -> None:
        """Puts the model in training mode, unless all of it is."""
        if not all(module.training for module in self._modules):
            self.model.train()

    def batch(self, samples: Tensor, unit: int, step: int | None = None) -> Batch:
        """Examples of a unit, as the data's `train` gives them, augmented with the unit's random numbers.

        Args:
            step: number of the batch, where a round has several; each has random numbers of its own.
        """
        key = (*self.key, unit, *([] if step is None else [step]))
        if not isinstance(self.data, Dataset):
            batch = map_tensors(self.data.train(samples, key=key), lambda t: t.to(self.device))
            try_task(self.task, self.model, batch, self.of_unit(unit), self.tried)
            return batch
        if self.augment is None:
            x, y = (t.to(self.device) for t in self.data.train(samples))
        else:
            draws = make_generator("augment", *key)
            crops = self.augment.crops(len(samples), draws)
            x, y = (t.to(self.device) for t in self.data.train(samples, crops))
            x = self.augment(x, draws)
        # a copy even where one channel makes both formats one: the strides tell the convolution which kernel to take
        return x.to(memory_format=torch.channels_last, copy=True) if self.channels_last else x, y

    def of_unit(self, unit: int) -> TaskContext:
        """What the task may know where a unit computes."""
        return TaskContext(
            device=self.device,
            precision=self.precision,
            client=unit,
            round_index=self.round_index,
            seed=self.seed,
        )

    def loss(self, batch: Batch, unit: int, smoothing: float = 0.0) -> Tensor:
        """The task's mean loss over a batch, in the run's precision; smoothing as in `gradient`."""
        return self.task.training_loss(self.model, batch, self.of_unit(unit), smoothing)


@contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """Seeds torch's global generators by a key, and restores them at the end."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = make_generator(*key).initial_seed()
        # torch.manual_seed would also queue a call, with its traceback, for every GPU that is not in use yet
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield

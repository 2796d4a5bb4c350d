# SPDX-License-Identifier: Apache-2.0
"""What every worker has at hand when it works: models, data, and how to compute."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from phalanx.core.layout import Layout
from phalanx.core.payload import Payload
from phalanx.core.round import make_generator
from phalanx.data.augment import Augment
from phalanx.data.dataset import Dataset
from phalanx.training.score import cross_entropy

if TYPE_CHECKING:
    from phalanx.matching.graph import Graph


class ModelProvider(Protocol):
    """Where models come from besides the present one: the learner of a run."""

    @property
    def layout(self) -> Layout:
        """Of the present model."""
        ...

    @property
    def model(self) -> nn.Module:
        """The present one."""
        ...

    @property
    def graph(self) -> Graph:
        """Which neurons of the original model can change places."""
        ...

    @property
    def begins(self) -> bool:
        """Whether this is the first round of the run."""
        ...

    def original(self) -> nn.Module:
        """A model in the size that the clients' own ones have, for the caller to fill."""
        ...

    def first(self, unit: int) -> dict[str, Tensor]:
        """The weights that a client would begin with by itself, in the original size."""
        ...


@dataclass
class WorkerContext:
    """What every worker has: the model as of this round, the data, and how to compute.

    Args:
        layout: of the rows that are asked for.
        key: what the random numbers of this round depend on, besides the unit.
        source: of other models than the present one: the original, and clients' own first ones.
        at: the round of the phase, of `rounds`.
        answers: what the server told single workers after the last round.
    """

    model: nn.Module
    layout: Layout
    data: Dataset
    augment: Augment | None
    precision: str
    channels_last: bool
    key: tuple[object, ...] = ()
    source: ModelProvider | None = None
    at: int = 0
    rounds: int = 1
    answers: Mapping[int, Payload] = field(default_factory=dict)

    def batch(self, samples: Tensor, unit: int, step: int | None = None) -> tuple[Tensor, Tensor]:
        """The examples and labels of a unit, as `Dataset.train` gives them, augmented under its own stream.

        Args:
            step: of several batches in one round; each has a stream of its own.
        """
        device = next(self.model.parameters()).device
        draws = make_generator("augment", *self.key, unit, *([] if step is None else [step]))
        crops = None if self.augment is None else self.augment.crops(len(samples), draws)
        x, y = (t.to(device) for t in self.data.train(samples, crops))
        if self.augment is not None:
            x = self.augment(x, draws)
        # a copy even where one channel makes both formats one: the strides tell the convolution which kernel to take
        return x.to(memory_format=torch.channels_last, copy=True) if self.channels_last else x, y

    def loss(self, x: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, mean over the labels of the batch, in the run's precision; smoothing as in `gradient`."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            scores = self.model(x)
        return cross_entropy(scores, y, smoothing=smoothing)


@contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """Draws from torch's global generators as from a stream, and leaves them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed = make_generator(*key).initial_seed()
        # torch.manual_seed would also queue a call, with its traceback, for every GPU that is not in use yet
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield

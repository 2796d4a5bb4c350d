# SPDX-License-Identifier: Apache-2.0
"""What a run trains and tests on: examples that are read by their numbers, in batches of any form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from phalanx.data.images import Crop
from phalanx.data.shape import Shape

Batch = Any  # a tensor, or tuples, lists and dictionaries of tensors


class Examples(ABC):
    """A training part and a test part, or parts of both for each client.

    Attributes:
        name: of the data set, for sentences.
        num_classes: number of outputs of a model of the library: classes, or numbers that are predicted.
        owners: owner of each training example, for `by_owner()`; None if unknown.
        added: number of training examples at the end that `assign_added` gives to a few units.
    """

    name: str
    num_classes: int
    owners: Tensor | None
    added: int

    @property
    @abstractmethod
    def num_train(self) -> int:
        """The number of training examples of all clients together."""

    @property
    @abstractmethod
    def num_test(self) -> int:
        """The number of test examples in this process."""

    @property
    @abstractmethod
    def shape(self) -> Shape:
        """The shape of an example."""

    @property
    @abstractmethod
    def keys(self) -> Tensor:
        """The value of each training example by which a partition distributes them: its class, or a number.

        Shapes: (N,), or (N, L) if every token has a label.
        Raises:
            ValueError: the examples have none.
        """

    @abstractmethod
    def train(self, samples: Any, crops: Sequence[Crop] | None = None, *, key: tuple[object, ...] = ()) -> Batch:
        """A batch of training examples.

        Args:
            samples: numbers of the examples.
            crops: the part of each image to read, where the data are images.
            key: the random numbers of data that draw some depend on it.
        """

    @abstractmethod
    def test(self, samples: Any) -> Batch:
        """A batch of test examples."""

    @abstractmethod
    def untested(self) -> Examples:
        """The data set without its test part, for a process that does not test."""

    @property
    def test_batch(self) -> int:
        """The number of examples in a batch of the test."""
        return 256

    @property
    def has_clients(self) -> bool:
        """Whether each client has examples of its own, for `by_client()`."""
        return False

    def check_clients(self, clients: int) -> None:
        """Raises ValueError unless there are so many clients with examples of their own."""
        self.client_train(0)

    def client_train(self, client: int) -> Tensor:
        """The numbers of a client's own training examples, for `train`."""
        raise ValueError(
            f"by_client() gives each worker the examples of one client, and {self.name} has no clients of its own; "
            "choose iid() or dirichlet(0.5), or load the data with client_datasets(...)"
        )

    def client_test(self, client: int) -> Tensor:
        """The numbers of a client's own test examples, for `test`; empty if it has none."""
        return torch.empty(0, dtype=torch.int64)


def map_tensors(batch: Batch, function: Callable[[Tensor], Any]) -> Batch:
    """The batch with a function applied to each of its tensors; what is no tensor stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch


def tensors_of(batch: Batch) -> list[Tensor]:
    """All tensors of a batch, in order."""
    found: list[Tensor] = []
    map_tensors(batch, found.append)
    return found


def form_of(batch: Batch) -> str:
    """The structure, the types and the numbers of dimensions of a batch, and which of its sides are one long.

    Two batches of one form differ in sizes only, so that what is right for one is right for the other.
    """
    return repr(map_tensors(batch, lambda t: (str(t.dtype), t.dim(), *(min(side, 2) for side in t.shape[1:]))))


def describe(batch: Batch) -> str:
    """The form of a batch for a sentence: '(float32 (32, 10), int64 (32,))'."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, tuple | list):
        return "(" + ", ".join(map(describe, batch)) + ")"
    return type(batch).__name__

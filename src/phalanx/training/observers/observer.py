# SPDX-License-Identifier: Apache-2.0
"""Measurements of the workers' rows during training, which do not change it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phalanx.core.expression import Expression, require
from phalanx.core.layout import Layout
from phalanx.core.registry import suggest
from phalanx.core.round import Round
from phalanx.core.stack import Stack


class Observer(Expression, ABC):
    """Measures the workers' rows before the scheme in rounds 0, every, 2 every, ..., and changes nothing.

    An observer with `arrived` measures the rows as `gather` brings them to the server, in rounds that are not lost.

    Its result is logged in metrics.jsonl under "observed", by the observer's expression.
    """

    every: int
    arrived: bool = False

    def validate(self) -> None:
        require(self.every >= 1, f"{self.expression_name} needs every >= 1 round, got every={self.every}")

    def check(self, layout: Layout, workers: int) -> None:
        """Raises ValueError, before anything is computed, if it cannot measure rows of this layout."""

    @abstractmethod
    def look(self, stack: Stack, round: Round) -> dict[str, Any]:
        """Measures the rows; returns plain values for JSON: numbers, strings, lists and dictionaries, None for NaN.

        Every process calls it with its own rows, (k, d), and may exchange through round.collective; rank 0's result
        counts.
        """


def observe(observers: Sequence[Observer], stack: Stack, round: Round, arrived: bool = False) -> dict[str, Any]:
    """What the observers whose turn it is measure of these rows, by their expressions."""
    due = [observer for observer in observers if observer.arrived == arrived and round.index % observer.every == 0]
    return {repr(observer): observer.look(stack, round) for observer in due}


class LayerObserver(Observer):
    """Measures tensors of one worker's row.

    The fields `layer` (a tensor's name; None for all of two or more dimensions) and `worker` belong to it.
    """

    layer: str | None
    worker: int

    def check(self, layout: Layout, workers: int) -> None:
        require(
            0 <= self.worker < workers,
            f"{self.expression_name}: there is no worker {self.worker}; choose from 0 to {workers - 1}",
        )
        names = _matrices(layout.head)
        require(
            bool(names) if self.layer is None else self.layer in layout.head.names,
            f"{self.expression_name}: the model has no layer {self.layer!r}; {suggest(str(self.layer), names)}",
        )

    def look(self, stack: Stack, round: Round) -> dict[str, Any]:
        head = stack.layout.head
        indices = [i for i, worker in enumerate(stack.ids) if worker == self.worker]
        row = stack.rows[indices, : stack.layout.stepped].reshape(-1)
        # empty from the processes that do not have the worker
        rows = [part["row"] for part in round.collective.all_gather_payloads({"row": row})]
        row = next((t for t in rows if len(t)), torch.zeros(head.d)).to(torch.float32)
        parts = head.split(row)
        names = _matrices(head) if self.layer is None else [self.layer]
        return {name: self.measure(parts[name], name, round) for name in names}

    @abstractmethod
    def measure(self, x: Tensor, name: str, round: Round) -> Any:
        """Measures one float32 tensor; returns plain values."""


def _matrices(layout: Layout) -> list[str]:
    return [name for name, shape in zip(layout.names, layout.shapes, strict=True) if len(shape) >= 2]

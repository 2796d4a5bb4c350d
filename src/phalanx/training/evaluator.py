# SPDX-License-Identifier: Apache-2.0
"""Measurements of a model whenever it is tested, besides its accuracy on the test set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from phalanx.core.expression import Expression
from phalanx.data.dataset import Dataset
from phalanx.training.score import scores_of, together


@dataclass(frozen=True)
class EvalContext:
    """A model that is tested, and what an evaluator may know of its run.

    Args:
        parts: returns the training samples of each worker.
    """

    model: nn.Module
    data: Dataset
    workers: int
    seed: int
    precision: str
    parts: Callable[[], tuple[Tensor, ...]]

    def labels(self, x: Tensor) -> Tensor:
        """The labels that the model predicts, in evaluation mode, for inputs as `Dataset.inputs` gives them.

        Shapes: (B, ...) -> (B,), or (B, L) where every token has a label.
        """
        device = next(self.model.parameters()).device
        self.model.eval()
        pieces = x.split(together(self.data))
        return torch.cat([scores_of(self.model, x.to(device), self.precision).argmax(dim=-1).cpu() for x in pieces])


class Evaluator(Expression, ABC):
    """A measurement of a model whenever it is tested; changes nothing.

    Its result is logged in metrics.jsonl under "examined", by the evaluator's expression. The last result is in the
    summary.
    """

    def check(self, data: Dataset) -> None:
        """Raises ValueError, before anything is computed, if it cannot measure models of such data."""
        return

    @abstractmethod
    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        """Measures the model; returns plain values for JSON."""


def share(right: Tensor) -> float | None:
    """The share of entries that are true; None if there are no entries. Shapes: (n,) bool -> scalar."""
    return float(right.double().mean()) if len(right) else None

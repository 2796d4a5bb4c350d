# SPDX-License-Identifier: Apache-2.0
"""What a model is asked besides its accuracy on the test part, whenever it is tested."""

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
    """A model that is tested, and what of its run an exam may look at.

    Args:
        parts: makes the training samples that each worker owns.
    """

    model: nn.Module
    data: Dataset
    workers: int
    seed: int
    precision: str
    parts: Callable[[], tuple[Tensor, ...]]

    def labels(self, x: Tensor) -> Tensor:
        """What the model calls inputs as `Dataset.inputs` gives them, in evaluation mode.

        Shapes: (B, ...) -> (B,), or (B, L) where every token has a label.
        """
        device = next(self.model.parameters()).device
        self.model.eval()
        pieces = x.split(together(self.data))
        return torch.cat([scores_of(self.model, x.to(device), self.precision).argmax(dim=-1).cpu() for x in pieces])


class Evaluator(Expression, ABC):
    """Questions to a model whenever it is tested; changes nothing.

    What it returns is logged in metrics.jsonl under "examined", by the exam's expression, and the last of it stands in
    the summary.
    """

    def check(self, data: Dataset) -> None:
        """Raises ValueError, before anything is computed, if models of such data cannot be asked."""
        return

    @abstractmethod
    def sit(self, sitting: EvalContext) -> dict[str, Any]:
        """Plain values for JSON."""


def share(right: Tensor) -> float | None:
    """Of truths; None of nothing. Shapes: (n,) bool -> scalar."""
    return float(right.double().mean()) if len(right) else None

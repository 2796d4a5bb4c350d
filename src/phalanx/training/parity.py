# SPDX-License-Identifier: Apache-2.0
"""An evaluator that measures how equal the accuracy is among the clients."""

from __future__ import annotations

from typing import Any

import torch

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.training.evaluator import EvalContext, Evaluator, share


@method("parity", "evaluator")
class Parity(Evaluator):
    """The model's accuracy on each client's own training samples, and the lowest accuracy divided by the highest.

    Args:
        clients: number of clients that are measured, drawn once from the run's seed; all when None.
        most: samples of a client that are used at most, >= 1.
    Source: the accuracy parity ratio of Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, section 4.
    """

    clients: int | None = None
    most: int = 200

    def validate(self) -> None:
        require(self.clients is None or self.clients >= 1, f"parity needs clients >= 1, got clients={self.clients}")
        require(self.most >= 1, f"parity needs most >= 1 sample of a client, got most={self.most}")

    def evaluate(self, context: EvalContext) -> dict[str, Any]:
        parts = context.parts()
        order = torch.randperm(len(parts), generator=make_generator("parity", context.seed))
        workers = sorted(order[: len(parts) if self.clients is None else self.clients].tolist())
        accuracy = {}
        for worker in workers:
            samples = parts[worker][: self.most]
            x, y = context.data.train(samples)
            right = (context.labels(x) == y)[y >= 0]
            accuracy[str(worker)] = share(right)
        rates = [rate for rate in accuracy.values() if rate is not None]
        lowest, highest = min(rates, default=None), max(rates, default=None)
        return {
            "accuracy": accuracy,
            "least": lowest,
            "ratio": lowest / highest if lowest is not None and highest else None,
        }

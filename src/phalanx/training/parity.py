# SPDX-License-Identifier: Apache-2.0
"""How unequally a model serves its clients."""

from __future__ import annotations

from typing import Any

import torch

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.training.evaluator import EvalContext, Evaluator, share


@method("parity", "evaluator")
class Parity(Evaluator):
    """The model's accuracy on every client's own training samples, and the least over the greatest of them.

    Args:
        clients: drawn once from the run's seed; None asks all.
        most: samples of a client that are looked at, >= 1.
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
        asked = sorted(order[: len(parts) if self.clients is None else self.clients].tolist())
        accuracy = {}
        for worker in asked:
            mine = parts[worker][: self.most]
            x, y = context.data.train(mine)
            right = (context.labels(x) == y)[y >= 0]
            accuracy[str(worker)] = share(right)
        known = [rate for rate in accuracy.values() if rate is not None]
        least, most = min(known, default=None), max(known, default=None)
        return {"accuracy": accuracy, "least": least, "ratio": least / most if least is not None and most else None}

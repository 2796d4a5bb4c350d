# SPDX-License-Identifier: Apache-2.0
"""An evaluator that measures how equally well the model serves the clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset
from phalanx.training.evaluator import EvalContext, Evaluator, share
from phalanx.training.score import number_of
from phalanx.training.task import LOSS, LOSS_METRIC
from phalanx.training.tasks import Classification


@method("parity", "evaluator")
class Parity(Evaluator):
    """The task's score of the model at each client, and the lowest score divided by the highest.

    A client that has test examples of its own is measured on these, another one on its training samples. The result has
    the scores under the name of the metric, "least", the worst of them, and "ratio", in [0, 1] where scores are not
    negative; None where one is.

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
        scores = {str(worker): self._score(context, worker, parts) for worker in workers}
        known = [score for score in scores.values() if score is not None]
        lowest, highest = min(known, default=None), max(known, default=None)
        worst = lowest if context.task.score.higher_is_better else highest
        ratio = lowest / highest if lowest is not None and highest and lowest >= 0 else None
        return {
            context.task.score.name: scores,
            "least": worst,
            "ratio": ratio,
        }

    def _score(self, context: EvalContext, worker: int, parts: Sequence[Tensor]) -> float | None:
        samples = context.data.client_test(worker)
        tested = len(samples) > 0
        samples = (samples if tested else parts[worker])[: self.most]
        if isinstance(context.data, Dataset) and isinstance(context.task, Classification):
            x, y = context.data.train(samples)
            return share((context.labels(x) == y)[y >= 0])
        score = context.task.score.name
        return number_of(context.measure(samples, tested, worker)[LOSS if score == LOSS_METRIC.name else score])

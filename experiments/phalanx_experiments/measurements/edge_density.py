# SPDX-License-Identifier: Apache-2.0
"""Figure 8.1: log densities of ordinary and of edge-case examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phalanx.aggregators.mean import Mean
from phalanx.backdoors.edges import EdgeCases
from phalanx.backdoors.rare_styles import RareStyles
from phalanx.backdoors.with_edge_cases import WithEdgeCases
from phalanx.codecs.dense import Dense
from phalanx.core.codec import Gather
from phalanx.core.expression import method, require
from phalanx.core.stage import chain
from phalanx.data.dataset import Data
from phalanx.data.digits import Digits
from phalanx.models.mlp import Mlp
from phalanx.models.model import Model
from phalanx.tools.runner.measurement import Measurement
from phalanx.training.client_work import Gradient
from phalanx.training.optim import Sgd
from phalanx.training.phase import Phase, Run
from phalanx.training.trainer import train
from phalanx_experiments.measurements.density import Covariance, edge_case_ness

SEEN = 0.01  # share of the edge-case examples that the histogram may leave to the left


@method("edge_density", "measurement")
class EdgeDensity(Measurement):
    """Log densities of training, test and edge-case examples under a Gaussian mixture of a model's outputs.

    The model is trained without an attack, on what honest clients have together, by SGD with momentum 0.9.

    Args:
        rounds: steps of training, >= 1.
        batch: examples of a step, >= 1.
        lr: step size, > 0.
        covariance: of a component: "own" of its class or "shared" by all.
        percentile: of the training part's densities that is the threshold, in [0, 100].
        bins: of the histogram, >= 1. It leaves a hundredth of the edge-case examples to its left, which are counted.
    Source: as `edge_case_ness`.
    """

    data: Data = Digits()
    model: Model = Mlp()
    edges: EdgeCases = RareStyles()
    rounds: int = 300
    batch: int = 64
    lr: float = 0.02
    covariance: Covariance = "shared"
    percentile: float = 1.0
    bins: int = 60
    seed: int = 0

    def validate(self) -> None:
        for name in ("rounds", "batch", "bins"):
            require(getattr(self, name) >= 1, f"edge_density needs {name} >= 1, got {name}={getattr(self, name)}")
        require(self.lr > 0, f"edge_density needs lr > 0, got lr={self.lr}")
        ok = 0 <= self.percentile <= 100
        require(ok, f"edge_density needs a percentile in [0, 100], got percentile={self.percentile}")

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        on_progress("training")
        scheme = chain(Gather(Dense()), Mean())
        # one worker, whose share of the batch is all of it
        phase = Phase(Gradient(batch=self.batch), scheme, Sgd(self.lr, momentum=0.9), self.rounds)
        trainer = train(Run(WithEdgeCases(self.data, self.edges), self.model, (phase,), workers=1, seed=self.seed))
        on_progress("densities")
        data = self.data.load()
        densities = edge_case_ness(trainer.model, data, self.edges.load(data), self.covariance, self.percentile)
        parts = densities.parts
        everything = torch.cat(list(parts.values()))
        low = min(float(densities.edge.quantile(SEEN)), float(densities.test.quantile(SEEN)))
        marks = torch.linspace(low, float(everything.max()), self.bins + 1, dtype=torch.float64)
        return {
            "accuracy": trainer.evaluate()[0],
            "threshold": densities.threshold,
            "separation": densities.separation,
            "below": densities.below(),
            "median": {name: float(part.median()) for name, part in parts.items()},
            "sizes": {name: len(part) for name, part in parts.items()},
            "marks": marks.tolist(),
            "counts": {name: counted(part, marks) for name, part in parts.items()},
            "left": {name: int((part < low).sum()) for name, part in parts.items()},
        }


def counted(values: Tensor, marks: Tensor) -> list[int]:
    """Number of values in each bin; the last edge belongs to the last bin. Shapes: (n,), (b + 1,) -> b numbers."""
    inside = values[(values >= marks[0]) & (values <= marks[-1])]
    bins = torch.bucketize(inside, marks[1:-1].contiguous(), right=True)
    return bins.bincount(minlength=len(marks) - 1).tolist()

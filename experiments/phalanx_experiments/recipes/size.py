# SPDX-License-Identifier: Apache-2.0
"""The size of a training run: the values that most recipes change with the scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import phalanx as px
from phalanx.core.stage import Stage
from phalanx.core.surgery import Surgery
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.training.optim import ServerOptimizer
from phalanx.training.phase import Run


@dataclass(frozen=True, kw_only=True)
class Size:
    """Network, data and length of a training of one phase, at one scale.

    Args:
        batch: examples a round over all workers.
        evaluate_every: rounds between two tests.
        smoothing: of the labels, as in `gradient`.
    """

    data: Data
    model: Model
    batch: int
    optimizer: ServerOptimizer
    rounds: int
    evaluate_every: int
    workers: int = 1
    augment: Augment | None = None
    precision: Literal["float32", "bf16"] = "float32"
    smoothing: float = 0.0

    def run(self, scheme: Stage, surgery: Surgery | None = None, **fields: Any) -> Run:
        """A run of this size; `fields` are further fields of the run."""
        phase = px.Phase(
            work=px.training.gradient(batch=self.batch, smoothing=self.smoothing),
            scheme=scheme,
            optimizer=self.optimizer,
            rounds=self.rounds,
            surgery=surgery,
        )
        return px.Run(
            data=self.data,
            model=self.model,
            phases=(phase,),
            workers=self.workers,
            augment=self.augment,
            precision=self.precision,
            evaluate_every=self.evaluate_every,
            **fields,
        )


def with_models(size: Size, models: Mapping[str, Model]) -> dict[str, Size]:
    """The size once for each network, by the name of its panel."""
    return {name: replace(size, model=model) for name, model in models.items()}


def in_panel(panel: str, label: str) -> str:
    """The label of a run in a panel; a recipe with one panel leaves its name empty."""
    return f"{panel}: {label}" if panel else label

# SPDX-License-Identifier: Apache-2.0
"""Runs of one phase, as the recipes of low-rank training are."""

from __future__ import annotations

from typing import Protocol

import phalanx as px
from phalanx.data.augment import Augment
from phalanx.data.dataset import Data
from phalanx.models.model import Model
from phalanx.training.phase import Phase, Run


class Scale(Protocol):
    """What the sizes of such recipes have in common."""

    @property
    def data(self) -> Data: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def augment(self) -> Augment | None: ...
    @property
    def precision(self) -> str: ...


def single(size: Scale, model: Model, phase: Phase) -> Run:
    """A run of one phase, with a checkpoint whenever it is tested."""
    return px.Run(
        data=size.data,
        model=model,
        phases=(phase,),
        workers=size.workers,
        augment=size.augment,
        precision=size.precision,  # type: ignore[arg-type]
        evaluate_every=size.evaluate_every,
        checkpoint_every=size.evaluate_every,
    )

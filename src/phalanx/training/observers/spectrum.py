# SPDX-License-Identifier: Apache-2.0
"""An observer that measures the singular values of layers' gradients."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from phalanx.codecs.atomo.spectral import Spectral
from phalanx.core.expression import method
from phalanx.core.round import Round
from phalanx.training.observers.observer import LayerObserver


@method("spectrum", "observer")
class Spectrum(LayerObserver):
    """The singular values of a worker's gradient, tensor by tensor, largest first.

    Args:
        layer: name of a parameter; all of two or more dimensions when None.
        reshape: how a tensor is viewed as a matrix, as in spectral().
        every: rounds between two looks, >= 1.
        worker: whose row it is.
    Source: Wang et al., ATOMO, 2018, arXiv:1806.04090, Figure 1.
    """

    layer: str | None = None
    reshape: Literal["paper", "matrix", "square"] = "paper"
    every: int = 100
    worker: int = 0

    def measure(self, x: Tensor, name: str, round: Round) -> Any:
        matrix = Spectral(self.reshape).matrix(x.to(torch.float64))
        if not bool(matrix.isfinite().all()):
            return None
        return torch.linalg.svdvals(matrix).tolist()

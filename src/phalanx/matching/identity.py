# SPDX-License-Identifier: Apache-2.0
"""A matcher that matches nothing, as a control."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.matching.matching import Assigned, Matcher


@method("identity", "matcher")
class Identity(Matcher):
    """Neuron l of every client is global neuron l, as in plain averaging; the objective is 0.

    Shapes: J of (L, D) -> (L, D).
    Raises:
        ValueError: clients have different numbers of neurons, or as `match`.
    """

    def assign(self, layers: Sequence[Tensor], bias_columns: Sequence[int], seed: int) -> Assigned:
        sizes = [len(layer) for layer in layers]
        other = next((j for j, size in enumerate(sizes) if size != sizes[0]), 0)
        require(
            sizes[other] == sizes[0],
            f"identity needs as many neurons from every client, got {sizes[other]} from client {other} "
            f"and {sizes[0]} from client 0; bbp() matches layers of different sizes",
        )
        return Assigned(tuple(torch.arange(size) for size in sizes))

    def posterior(self, mean: Tensor, counts: Tensor, bias_columns: Sequence[int] = ()) -> Tensor:
        return mean

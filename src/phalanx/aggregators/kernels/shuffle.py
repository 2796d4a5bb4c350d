# SPDX-License-Identifier: Apache-2.0
"""Random groups of rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from phalanx.core.round import Round
from phalanx.core.stack import Stack


def shuffled(stack: Stack, round: Round) -> list[int | None]:
    """The positions of the rows and one None for each erased row, shuffled.

    What a worker's place is depends on the round and on which workers' rows are here, not on the order of the rows.
    """
    order = sorted(range(len(stack.rows)), key=lambda i: (stack.order_key(i), float(stack.weights[i])))
    places: list[int | None] = [*order, *[None] * stack.erased]
    return [places[i] for i in torch.randperm(len(places), generator=round.rng()).tolist()]


def even_groups(n: int, groups: int) -> list[range]:
    """n places cut into contiguous groups whose sizes differ by one at most, the larger ones first."""
    ends = np.cumsum([n // groups + (g < n % groups) for g in range(groups)]).tolist()
    return [range(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def present(places: Sequence[int | None]) -> list[int]:
    """The positions that hold a row."""
    return [i for i in places if i is not None]

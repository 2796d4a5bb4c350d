# SPDX-License-Identifier: Apache-2.0
"""Shuffles rows and divides them into groups of equal size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from phalanx.core.round import Round
from phalanx.core.stack import Stack


def shuffled(stack: Stack, round: Round) -> list[int | None]:
    """The positions of the rows and one None for each erased row, shuffled.

    The place of a worker depends on the round and on which workers' rows have arrived, not on the order of the rows.
    """
    order = sorted(range(len(stack.rows)), key=lambda i: (stack.order_key(i), float(stack.weights[i])))
    positions: list[int | None] = [*order, *[None] * stack.erased]
    return [positions[i] for i in torch.randperm(len(positions), generator=round.rng()).tolist()]


def even_groups(n: int, groups: int) -> list[range]:
    """Divides n places into contiguous groups whose sizes differ by one at most, larger groups first."""
    ends = np.cumsum([n // groups + (g < n % groups) for g in range(groups)]).tolist()
    return [range(start, stop) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def present(positions: Sequence[int | None]) -> list[int]:
    """The positions that are not None, in order."""
    return [i for i in positions if i is not None]

# SPDX-License-Identifier: Apache-2.0
"""The allocation of work: which worker computes which units (A and E of a coding scheme)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """The units of work of each worker, and the coefficients with which the worker adds them up.

    A unit is a share of the round's samples. Worker i's row is sum_j shares[i][j] g_(units[i][j]), where g_u is the row
    of unit u, scaled so that the plain mean over all units is the update; a worker with one unit and the share 1 sends
    that unit's row as it is.

    Args:
        units: the units of each worker, ascending.
        shares: coefficients of these units, in the same order.
        separate: the wire stage gets the rows of a worker's units one by one and adds them up itself; all shares are 1.
    Source: Wang, Toward Robust and Communication Efficient Distributed Machine Learning, 2021, section 6.2.
    """

    units: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    separate: bool = False

    def __post_init__(self) -> None:
        assert [len(units) for units in self.units] == [len(shares) for shares in self.shares]
        assert all(units and list(units) == sorted(set(units)) for units in self.units)

    @staticmethod
    def single(units: Sequence[int]) -> Allocation:
        """An allocation of one unit to each worker."""
        return Allocation(tuple((u,) for u in units), tuple((1.0,) for _ in units))

    @cached_property
    def num_units(self) -> int:
        """The number of units."""
        return 1 + max(u for units in self.units for u in units)

    @cached_property
    def coded(self) -> bool:
        """Whether some worker sends anything but one unit's row."""
        return any(shares != (1.0,) for shares in self.shares)

    @property
    def matrix(self) -> Tensor:
        """The matrix A: 1.0 where a worker computes a unit. Shapes: (n, num_units) float64."""
        return (self.weights_matrix != 0).double()

    @property
    def weights_matrix(self) -> Tensor:
        """The matrix W: the coefficient of each unit in each worker's row. Shapes: (n, num_units) float64."""
        matrix = torch.zeros(len(self.units), self.num_units, dtype=torch.float64)
        for row, units, shares in zip(matrix, self.units, self.shares, strict=True):
            row[list(units)] = torch.tensor(shares, dtype=torch.float64)
        return matrix

    def unit(self, worker: int) -> int:
        """The unit of a worker that has a single one.

        Raises:
            ValueError: the worker adds up several units.
        """
        if self.coded:
            raise ValueError(f"worker {worker} adds up several units, {list(self.units[worker])}; it has no single one")
        return self.units[worker][0]

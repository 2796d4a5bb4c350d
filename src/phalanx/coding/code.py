# SPDX-License-Identifier: Apache-2.0
"""Codes: redundancy that gives back the exact mean of the units, whatever a few workers send."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from phalanx.core.aggregator import Aggregator
from phalanx.core.allocation import Allocation
from phalanx.core.stage import TooFewRows


class TooManyFaults(TooFewRows):
    """More rows are false or missing than a code can tell apart: the update of the round is skipped."""


class Code(Aggregator):
    """A code (A, E, D) behind the wire: allocation and encoding are `assign`, decoding is `combine`.

    l lies and e missing rows are recovered from while 2 l + e <= 2 tolerates(n); a group code promises that for each of
    its groups.

    Source: Chen et al., DRACO: Byzantine-resilient Distributed Training via Redundant Gradients, 2018,
        arXiv:1803.09877, section 3.
    """

    @abstractmethod
    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation:
        """A and E: the units of each worker, and the factors with which it adds them up."""

    def encode(self, units: Tensor, n: int) -> Tensor:
        """What n honest workers send, for the rows of all units. Shapes: (num_units, d) -> (n, d)."""
        return (self.assign(n).weights_matrix @ units.double()).to(units.dtype)

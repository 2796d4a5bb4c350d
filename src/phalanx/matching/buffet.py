# SPDX-License-Identifier: Apache-2.0
"""Prior of a partition of neurons: the beta-Bernoulli or Indian buffet process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BuffetPrior:
    """A client has a neuron that n of J clients have with odds n : (J - n), and Poisson(gamma / J) neurons of its own.

    All values are twice the logarithm of a probability if popularity is 2.

    Args:
        gamma: expected number of new neurons over all clients, > 0; higher opens more.
        popularity: factor of log(n / (J - n)).
        cap: largest n that counts; None is no limit.
        clients: J.
    """

    gamma: float
    popularity: float
    cap: int | None
    clients: int

    def joining(self, counts: Tensor) -> Tensor:
        """popularity * log(n / (J - n)) for neurons that n of the other clients have."""
        n = counts.double() if self.cap is None else counts.clamp(max=self.cap).double()
        return self.popularity * (n / (self.clients - n)).log()

    def opening(self, most: int) -> Tensor:
        """2 log(gamma / J) - 2 log k for the k-th new neuron of a client, k = 1..most."""
        return 2 * math.log(self.gamma / self.clients) - 2 * torch.arange(1, most + 1, dtype=torch.float64).log()

    def value(self, counts: Tensor, alone: Tensor) -> float:
        """The prior of a partition.

        The value of a neuron is that of opening it plus that of joining it, client after client, in any order. The s_j
        neurons that only client j has add -2 log(s_j!) together.

        Args:
            counts: (L,) clients that have each neuron, >= 1.
            alone: (J,) neurons that only client j has.
        """
        steps = self.joining(torch.arange(1, self.clients))
        by_count = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
        opened = 2 * math.log(self.gamma / self.clients) * len(counts)
        return float(opened + by_count[counts - 1].sum() - 2 * torch.lgamma(alone.double() + 1).sum())

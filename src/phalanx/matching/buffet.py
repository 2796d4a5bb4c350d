# SPDX-License-Identifier: Apache-2.0
"""How many neurons to expect, and how many clients to have each: the beta-Bernoulli prior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Buffet:
    """Each of J clients has each neuron as often as others have it, and Poisson(gamma / J) neurons of its own.

    All values are twice the logarithm of a probability where popularity is 2.

    Args:
        gamma: neurons to expect that nobody has yet, over all clients; higher opens more.
        popularity: factor of log(n / (J - n)).
        cap: where n is cut; None leaves it.
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
        """The prior of a partition: `counts` clients at each neuron, `alone` neurons that only client j has.

        One neuron is worth what opening it and then joining it, one client after the other, is worth, whatever their
        order; the s_j neurons of client j alone are worth -2 log(s_j!) together.
        """
        steps = self.joining(torch.arange(1, self.clients))
        by_count = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
        opened = 2 * math.log(self.gamma / self.clients) * len(counts)
        return float(opened + by_count[counts - 1].sum() - 2 * torch.lgamma(alone.double() + 1).sum())

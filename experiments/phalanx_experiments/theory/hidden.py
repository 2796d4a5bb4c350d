# SPDX-License-Identifier: Apache-2.0
"""Two neurons that no gradient tells apart, but for a region that nearly no input hits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from phalanx.core.expression import require
from phalanx_experiments.theory.written import linear

_MOST = 1000  # inputs of the exact law, whose numbers have 55 bits for each
_CHUNK = 1 << 22  # numbers drawn at once


@dataclass(frozen=True)
class Share:
    """How much of the cube the region B takes.

    Args:
        samples: uniform points that were drawn.
        inside: how many of them lie in B.
        bound: exp(-2 n t^2), which P(B) is not above.
    """

    samples: int
    inside: int
    bound: float

    @property
    def measured(self) -> float:
        """Share of the points that are in B."""
        return self.inside / self.samples


@dataclass(frozen=True, eq=False)
class HiddenPair:
    """Networks f and g of one neuron that differ in B = {mean(x) >= 1/2 + t} only.

    Args:
        n: length of an input.
        t: how far from the middle B begins.
        f: max(mean(x) - 1, 0), zero on the cube.
        g: max(mean(x) - 1/2 - t, 0).
    """

    n: int
    t: float
    f: nn.Sequential
    g: nn.Sequential

    @property
    def bound(self) -> float:
        """Hoeffding's bound of P(B), exp(-2 n t^2)."""
        return math.exp(-2 * self.n * self.t**2)

    @property
    def difference(self) -> float:
        """g - f at (1, .., 1), where it is largest: 1/2 - t."""
        return 0.5 - self.t

    def holds(self, x: Tensor) -> Tensor:
        """Whether points are in B. Shapes: (b, n) -> (b,)."""
        return x.double().mean(dim=1) >= 0.5 + self.t

    def probability(self) -> float:
        """P(B) of a uniform point, from whole numbers, so to the last bit; of n up to 1000, which takes seconds.

        The sum of n uniform numbers is at most y with probability sum over k <= y of (-1)^k C(n, k) (y - k)^n / n!
        (Irwin and Hall, 1927); by symmetry that of B is the one of y = n (1/2 - t).
        """
        require(self.n <= _MOST, f"the exact probability takes n <= {_MOST}, got n={self.n}; `bound` holds for all n")
        y = self.n * (Fraction(1, 2) - Fraction(self.t))
        p, q = y.numerator, y.denominator
        total = sum((-1) ** k * math.comb(self.n, k) * (p - k * q) ** self.n for k in range(p // q + 1))
        return total / (q**self.n * math.factorial(self.n))

    def share(self, samples: int, rng: torch.Generator) -> Share:
        """P(B) on uniform points, beside its bound.

        Args:
            samples: points to draw, >= 1.
            rng: on the CPU.
        """
        require(samples >= 1, f"share needs samples >= 1, got samples={samples}")
        inside, most = 0, max(1, _CHUNK // self.n)
        for start in range(0, samples, most):
            x = torch.rand(min(most, samples - start), self.n, generator=rng, dtype=torch.float64)
            inside += int(self.holds(x).sum())
        return Share(samples, inside, self.bound)


def hidden_pair(n: int, t: float) -> HiddenPair:
    """Networks f and g of n inputs with equal values and gradients outside of at most exp(-2 n t^2) of the cube.

    Whoever compares values or gradients at N uniform points sees the difference with probability at most N times that.

    Args:
        n: length of an input, >= 1; higher hides better.
        t: in (0, 1/2); higher hides better and differs less, by 1/2 - t at (1, .., 1).
    Raises:
        ValueError: another n or t.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084 (Proposition 8.6 of Wang's dissertation).
    Differs: b_2 is 1/2 + t, printed 1/2, for which P(B) is 1/2 and not below exp(-n / 2).
    """
    require(n >= 1, f"hidden_pair needs n >= 1 inputs, got n={n}")
    require(0 < t < 0.5, f"hidden_pair needs 0 < t < 1/2, got t={t}; at t = 0 half of all inputs lie in B")
    return HiddenPair(n, t, _neuron(n, 1.0), _neuron(n, 0.5 + t))


def _neuron(n: int, threshold: float) -> nn.Sequential:
    """The network max(mean(x) - threshold, 0) in float64."""
    weight = torch.full((1, n), 1 / n, dtype=torch.float64)
    return nn.Sequential(linear(weight, torch.tensor([-threshold], dtype=torch.float64)), nn.ReLU())

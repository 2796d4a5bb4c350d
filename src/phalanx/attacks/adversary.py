# SPDX-License-Identifier: Apache-2.0
"""Which workers the adversary controls in which round."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from phalanx.core.expression import Expression, method, require
from phalanx.core.round import make_generator


class Threat(Expression, ABC):
    """Which workers are Byzantine in which round."""

    @abstractmethod
    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        """The Byzantine workers of round `index` among n.

        Raises:
            ValueError: more or other workers than there are.
        """


@method("none", "adversary")
class NoAdversary(Threat):
    """No worker is Byzantine."""

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        return frozenset()


@method("workers", "adversary")
class NamedWorkers(Threat):
    """The named workers, in every round."""

    workers: tuple[int, ...]

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        out = [w for w in self.workers if not 0 <= w < n]
        require(not out, f"workers names {out}, and there are workers 0 to {n - 1}")
        return frozenset(self.workers)


@method("evenly_spaced", "adversary")
class EvenlySpaced(Threat):
    """`count` workers at equal distances, in every round: no two in one vote group while there are groups enough."""

    count: int

    def validate(self) -> None:
        require(self.count >= 0, f"evenly_spaced needs count >= 0, got count={self.count}")

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"evenly_spaced({self.count}) needs at least {self.count} workers, got n={n}")
        return frozenset(i * n // self.count for i in range(self.count))


@method("random", "adversary")
class RandomWorkers(Threat):
    """`count` workers drawn at random from the run's seed.

    Args:
        every: rounds after which they are drawn anew; 0 keeps them for the whole run.
    """

    count: int
    every: int = 0

    def validate(self) -> None:
        require(self.count >= 0, f"random needs count >= 0, got count={self.count}")
        require(self.every >= 0, f"random needs every >= 0 rounds, got every={self.every}")

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"random({self.count}) needs at least {self.count} workers, got n={n}")
        epoch = index // self.every if self.every else 0
        order = torch.randperm(n, generator=make_generator("byzantine", seed, epoch))
        return frozenset(order[: self.count].tolist())


none, workers, evenly_spaced, random = NoAdversary, NamedWorkers, EvenlySpaced, RandomWorkers

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
    def at(self, round_index: int, n: int, seed: int) -> frozenset[int]:
        """The Byzantine workers of round `index` among n.

        Raises:
            ValueError: it names more workers than there are, or unknown ones.
        """


@method("none", "adversary")
class NoAdversary(Threat):
    """No worker is Byzantine."""

    def at(self, round_index: int, n: int, seed: int) -> frozenset[int]:
        return frozenset()


@method("workers", "adversary")
class NamedWorkers(Threat):
    """The named workers are Byzantine in every round."""

    workers: tuple[int, ...]

    def at(self, round_index: int, n: int, seed: int) -> frozenset[int]:
        unknown = [w for w in self.workers if not 0 <= w < n]
        require(not unknown, f"workers names {unknown}, and there are workers 0 to {n - 1}")
        return frozenset(self.workers)


@method("evenly_spaced", "adversary")
class EvenlySpaced(Threat):
    """`count` workers at equal distances in every round.

    It is the favourable case for votes whose groups are `in_order()`: no two are in one group while there are enough
    groups. Groups at random do not know it, and are lost as often as under `random(count)`.
    """

    count: int

    def validate(self) -> None:
        require(self.count >= 0, f"evenly_spaced needs count >= 0, got count={self.count}")

    def at(self, round_index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"evenly_spaced({self.count}) needs at least {self.count} workers, got n={n}")
        return frozenset(i * n // self.count for i in range(self.count))


@method("random", "adversary")
class RandomWorkers(Threat):
    """`count` workers drawn at random from the run's seed.

    Args:
        every: number of rounds after which they are drawn anew; 0 keeps them for the whole run.
    """

    count: int
    every: int = 0

    def validate(self) -> None:
        require(self.count >= 0, f"random needs count >= 0, got count={self.count}")
        require(self.every >= 0, f"random needs every >= 0 rounds, got every={self.every}")

    def at(self, round_index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"random({self.count}) needs at least {self.count} workers, got n={n}")
        epoch = round_index // self.every if self.every else 0
        order = torch.randperm(n, generator=make_generator("byzantine", seed, epoch))
        return frozenset(order[: self.count].tolist())


none, workers, evenly_spaced, random = NoAdversary, NamedWorkers, EvenlySpaced, RandomWorkers

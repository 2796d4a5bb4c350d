# SPDX-License-Identifier: Apache-2.0
"""Which worker stands at which position of a code; contiguous positions form the groups of a vote."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

import torch

from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.core.expression import Expression, method, require
from phalanx.core.round import make_generator


class Placement(Expression, ABC):
    """The places of workers in a code, the same in every process that knows the run's seed."""

    @abstractmethod
    def workers(self, n: int, seed: int, index: int, groups: int | None) -> list[int]:
        """The worker at each position; the arguments are those of `positions`."""

    def positions(self, n: int, seed: int = 0, index: int = 0, groups: int | None = None) -> tuple[int, ...]:
        """The position of each worker, a permutation of 0 .. n - 1.

        Args:
            seed: of the run.
            index: number of the round.
            groups: into which `even_groups` cuts the positions; None for a code that has no groups.
        Raises:
            ValueError: the placement does not fit n workers or so many groups.
        """
        return tuple(torch.tensor(self.workers(n, seed, index, groups)).argsort().tolist())

    def check(self, n: int, groups: int | None = None) -> None:
        """Raises ValueError unless the placement fits n workers and so many groups."""


@method("in_order", "placement")
class InOrder(Placement):
    """Worker i at position i, so that neighbouring ranks share a group: for drills that choose who shares one.

    Processes of one host have neighbouring ranks, and who takes over that host has their whole group.
    """

    def workers(self, n: int, seed: int, index: int, groups: int | None) -> list[int]:
        return list(range(n))


@method("random_order", "placement")
class RandomOrder(Placement):
    """Workers at random positions, drawn from the run's seed.

    A worker learns the places with the seed, when the run begins. Where machines can choose their ranks before that,
    take a seed that nobody can guess.

    Args:
        every: rounds after which the places are drawn anew; 0 keeps them for the whole run.
    Source: the random partition of Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust
        Gradient Aggregation, 2019, arXiv:1907.12205, Algorithm 1. Differs: `every`.
    """

    every: int = 0

    def validate(self) -> None:
        require(self.every >= 0, f"random_order needs every >= 0 rounds, got every={self.every}")

    def workers(self, n: int, seed: int, index: int, groups: int | None) -> list[int]:
        return _drawn(n, seed, index, self.every)


@method("by_host", "placement")
class ByHost(Placement):
    """Workers of one host in as many groups as there are, so that a host that is taken over wins none.

    Without groups, workers of one host are as far apart as their number allows. Otherwise places are random.

    Args:
        hosts: the host of each worker, a number or a name, such as (0, 0, 1, 1).
        every: rounds after which the places are drawn anew; 0 keeps them for the whole run.
    Raises:
        ValueError: a host has so many workers that half of a group are its own wherever they stand.
    """

    hosts: tuple[int | str, ...]
    every: int = 0

    def validate(self) -> None:
        require(len(self.hosts) >= 1, "by_host needs the host of each worker, got none")
        require(self.every >= 0, f"by_host needs every >= 0 rounds, got every={self.every}")

    def check(self, n: int, groups: int | None = None) -> None:
        have = len(self.hosts)
        require(have == n, f"by_host names the hosts of {have} workers, and there are n={n}; name one for each worker")
        host, most = Counter(self.hosts).most_common(1)[0]
        if groups is not None and n // groups > 2:
            require(
                2 * -(-most // groups) < n // groups,
                f"by_host: host {host!r} has {most} of n={n} workers, and half of a group of {n // groups} may be its "
                "own wherever they stand; take a larger r, more hosts, or random_order()",
            )

    def workers(self, n: int, seed: int, index: int, groups: int | None) -> list[int]:
        self.check(n, groups)
        order = _drawn(n, seed, index, self.every)
        first = {self.hosts[worker]: place for place, worker in reversed(list(enumerate(order)))}
        by_host = sorted(order, key=lambda worker: first[self.hosts[worker]])
        count = groups or max(Counter(self.hosts).values())
        # dealt like cards: group g gets every count-th worker, as many as `even_groups` says
        dealt = [worker for g in range(count) for worker in by_host[g::count]]
        assert [len(by_host[g::count]) for g in range(count)] == list(map(len, even_groups(n, count)))
        return dealt


def _drawn(n: int, seed: int, index: int, every: int) -> list[int]:
    epoch = index // every if every else 0
    return torch.randperm(n, generator=make_generator("placement", seed, epoch)).tolist()

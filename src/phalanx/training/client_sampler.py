# SPDX-License-Identifier: Apache-2.0
"""Client samplers: they choose the workers of a round."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from phalanx.core.expression import Expression, method, require
from phalanx.core.round import make_generator


class ClientSampler(Expression, ABC):
    """Chooses the workers of a round."""

    @abstractmethod
    def count(self, n: int) -> int:
        """The number of workers that take part, of n.

        Raises:
            ValueError: there are fewer.
        """

    @abstractmethod
    def sample(self, round_index: int, n: int, seed: int) -> tuple[int, ...]:
        """The workers of a round, ascending; the same in every process."""


@method("all_clients", "client_sampler")
class AllClients(ClientSampler):
    """All workers, in every round."""

    def count(self, n: int) -> int:
        return n

    def sample(self, round_index: int, n: int, seed: int) -> tuple[int, ...]:
        return tuple(range(n))


@method("uniform", "client_sampler")
class Uniform(ClientSampler):
    """`clients` workers drawn anew for each round, without replacement; each is as likely as any other.

    Source: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017,
        arXiv:1602.05629, Algorithm 1. As published, with the run's own stream of random numbers.
    """

    clients: int

    def validate(self) -> None:
        require(self.clients >= 1, f"uniform needs clients >= 1, got clients={self.clients}")

    def count(self, n: int) -> int:
        require(self.clients <= n, f"uniform({self.clients}) needs at least {self.clients} workers, got n={n}")
        return self.clients

    def sample(self, round_index: int, n: int, seed: int) -> tuple[int, ...]:
        order = torch.randperm(n, generator=make_generator("clients", seed, round_index))
        return tuple(sorted(order[: self.count(n)].tolist()))


@method("with_attackers", "client_sampler")
class WithAttackers(ClientSampler):
    """`clients` workers, among them the attackers in every `every`-th round only; the others are drawn at random.

    Args:
        clients: workers of a round, at least as many as attackers.
        attackers: workers that the adversary controls; name the same ones in the run's `byzantine=workers(...)`.
        every: rounds from one attack to the next, >= 1; the first is in round `first`.
        first: >= 0.
        rounds: first round without attacks; None attacks until the end.
    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019, arXiv:1911.07963, fixed-frequency attack;
        Wang et al., 2020, arXiv:2007.05084, section 4; its fixed-pool attack is `uniform` with `byzantine=random(...)`.
    """

    clients: int
    attackers: tuple[int, ...] = (0,)
    every: int = 10
    first: int = 0
    rounds: int | None = None

    def validate(self) -> None:
        known = len(set(self.attackers)) == len(self.attackers) and min(self.attackers, default=0) >= 0
        require(known, f"with_attackers needs different attackers >= 0, got attackers={self.attackers}")
        require(
            1 <= len(self.attackers) <= self.clients,
            f"with_attackers needs 1 to clients={self.clients} attackers, got {len(self.attackers)}",
        )
        require(self.every >= 1, f"with_attackers needs every >= 1 round, got every={self.every}")
        require(self.first >= 0, f"with_attackers needs first >= 0, got first={self.first}")

    def count(self, n: int) -> int:
        honest = n - len(self.attackers)
        known = max(self.attackers) < n
        require(known, f"{self!r} names worker {max(self.attackers)}, and there are workers 0 to {n - 1}")
        require(self.clients <= honest, f"{self!r} needs {self.clients} honest workers, and there are {honest}")
        return self.clients

    def sample(self, round_index: int, n: int, seed: int) -> tuple[int, ...]:
        over = self.rounds is not None and round_index >= self.rounds
        attacked = round_index >= self.first and (round_index - self.first) % self.every == 0 and not over
        attackers = self.attackers if attacked else ()
        honest = torch.tensor([worker for worker in range(n) if worker not in self.attackers])
        drawn = torch.randperm(len(honest), generator=make_generator("clients", seed, round_index))[
            : self.count(n) - len(attackers)
        ]
        return tuple(sorted([*attackers, *honest[drawn].tolist()]))


@method("with_fixed", "client_sampler")
class WithFixed(ClientSampler):
    """The last `last` workers in every round, such as a trusted one at the server, and some of the others.

    Args:
        others: chooses among the remaining workers.
        last: >= 1.
    """

    others: ClientSampler
    last: int = 1

    def validate(self) -> None:
        require(self.last >= 1, f"with_fixed needs last >= 1 worker, got last={self.last}")

    def count(self, n: int) -> int:
        require(self.last < n, f"{self!r} needs more than {self.last} workers, got n={n}")
        return self.others.count(n - self.last) + self.last

    def sample(self, round_index: int, n: int, seed: int) -> tuple[int, ...]:
        return (*self.others.sample(round_index, n - self.last, seed), *range(n - self.last, n))

# SPDX-License-Identifier: Apache-2.0
"""The world brings the payloads of n workers to the process that aggregates them; nothing else uses a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.precision import accumulation_dtype


class World(Protocol):
    """The methods that a collective and a server's transport share; the stages behind the wire need no others."""

    @property
    def rank(self) -> int:
        """Rank of this process; rank 0 writes results."""
        ...

    @property
    def size(self) -> int:
        """n, the number of workers."""
        ...

    @property
    def workers(self) -> tuple[int, ...]:
        """The n workers, ascending. `gather` returns their payloads in this order."""
        ...

    @property
    def local_workers(self) -> tuple[int, ...]:
        """The workers that compute in this process, ascending; none in a server's process."""
        ...

    @property
    def gives_memory(self) -> bool:
        """Whether what `gather` returns lies in memory that nobody else reads, so that it may be written over."""
        ...

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        """The payload of each worker.

        A worker that sent nothing (None), something malformed, or more than limit_bytes is a BadPayload.

        Args:
            payloads: one for each of `local_workers`.
        """
        ...

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        """The payloads of the named workers only, in that order; the others do not send theirs.

        Args:
            payloads: one for each of `local_workers`.
        """
        ...

    def broadcast(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree of rank 0, in every process that runs the server's half of the scheme."""
        ...

    def all_gather_payloads(self, payload: Payload) -> list[Payload]:
        """One payload of each process that runs the server's half, by rank; not counted as traffic."""
        ...

    def close(self) -> None:
        """Closes the network connections that belong to this world, if it has any."""
        ...


class Collective(World, Protocol):
    """Processes that each compute some of the n workers and all run the server's half of the scheme.

    Every process calls the same methods in the same order.
    """

    @property
    def left_out(self) -> frozenset[int]:
        """Workers whose messages are not read any more, because of what they did."""
        ...

    @property
    def echoes(self) -> bool:
        """Whether all messages are copies of this process's own, as where one process rehearses a step of many."""
        ...

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        """The weighted mean over the rows of all workers, by all-reduce. Shapes: (k, m), (k,), () -> (m,).

        Args:
            total: sum of the weights of all workers; one `all_gather` gives it for several means.
        """
        ...

    def all_gather(self, x: Tensor) -> Tensor:
        """The rows of all workers, in every process; not counted as traffic. Shapes: (k, m) -> (n, m)."""
        ...

    def all_to_all(
        self, parts: Sequence[Sequence[Payload | None]], limit_bytes: int
    ) -> list[list[Payload | BadPayload]]:
        """What all workers sent to each of `local_workers`; a part that is None, malformed or too long is a BadPayload.

        Args:
            parts: for each of `local_workers`, one part for each worker.
        Returns:
            for each of `local_workers`, one part from each worker.
        """
        ...


class LocalCollective:
    """All n workers in this process: the simulation.

    Args:
        n: workers, >= 1.
        local_workers: workers that compute here, in a worker's process of a server's job; all when None.
    Raises:
        ValueError: n < 1.
    """

    def __init__(self, n: int, local_workers: tuple[int, ...] | None = None) -> None:
        if n < 1:
            raise ValueError(f"a collective needs at least one worker, got n={n}")
        self.rank, self.size, self.workers = 0, n, tuple(range(n))
        self.left_out: frozenset[int] = frozenset()
        self.echoes = self.gives_memory = False
        self.local_workers = self.workers if local_workers is None else local_workers

    def __repr__(self) -> str:
        return f"LocalCollective({self.size})"

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        assert len(payloads) == self.size
        return [checked_payload(payload, limit_bytes) for payload in payloads]

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        return [checked_payload(payloads[worker], limit_bytes) for worker in workers]

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        # weights rounded to 16 bits would not add up to one
        normalized = (weights / total).to(x.device, accumulation_dtype(x.dtype))
        return (normalized @ x.to(normalized.dtype)).to(x.dtype)

    def all_gather(self, x: Tensor) -> Tensor:
        assert len(x) == self.size
        return x

    def all_to_all(
        self, parts: Sequence[Sequence[Payload | None]], limit_bytes: int
    ) -> list[list[Payload | BadPayload]]:
        assert len(parts) == self.size
        return [[checked_payload(sent[to], limit_bytes) for sent in parts] for to in range(self.size)]

    def all_gather_payloads(self, payload: Payload) -> list[Payload]:
        return [payload]

    def broadcast(self, tree: dict[str, Any]) -> dict[str, Any]:
        return tree

    def close(self) -> None:
        pass


def checked_payload(
    payload: Payload | BadPayload | None, limit_bytes: int, missing: str = "nothing arrived"
) -> Payload | BadPayload:
    """The payload, or a BadPayload with the reason where it is missing or too long.

    Args:
        missing: the reason where there is no payload.
    """
    if payload is None:
        return BadPayload(missing)
    if isinstance(payload, BadPayload):
        return payload
    size = payload_bytes(payload)
    return payload if size <= limit_bytes else BadPayload(f"{size} bytes, at most {limit_bytes} allowed")

# SPDX-License-Identifier: Apache-2.0
"""Where the rows live: the only place that touches a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.precision import wide
from phalanx.core.round_request import RoundRequest


class World(Protocol):
    """n workers, of which this process plays some.

    Every process calls the same methods in the same order.
    """

    @property
    def size(self) -> int:
        """n, the workers of the run."""
        ...

    @property
    def ids(self) -> tuple[int, ...]:
        """The workers that this process plays, ascending."""
        ...

    @property
    def workers(self) -> tuple[int, ...]:
        """The n workers, ascending: what `gather` gives stands in this order."""
        ...

    @property
    def rank(self) -> int:
        """0 in the process that writes results."""
        ...

    @property
    def serves(self) -> bool:
        """Whether the workers run their half of the scheme elsewhere, and this process runs the server's only."""
        ...

    @property
    def processes(self) -> list[dict[str, Any]]:
        """Workers, host and process id of each process elsewhere that plays some; none where every process does."""
        ...

    @property
    def received_bytes(self) -> int | None:
        """What reached this process's sockets so far; None where nobody counts."""
        ...

    def begin(self, opened: RoundRequest, run: str, memories: dict[str, Any]) -> None:
        """A round begins: gives the model to workers that are elsewhere.

        Args:
            opened: whom the round asks, and what they need.
            run: its expression, for those that do not know it yet.
            memories: workers' memories from a checkpoint, for the same.
        """
        ...

    def tell(self, numbers: Tensor) -> Tensor:
        """The workers' bookkeeping, not metered; NaN for those of whom nothing is heard. Shapes: (k, m) -> (n, m)."""
        ...

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        """From one payload for each of `ids` to one for each of the n workers.

        A worker that sent nothing (None), something malformed, or more than limit_bytes is a BadPayload.
        """
        ...

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        """The payloads of the named workers only, in that order; others keep theirs.

        Args:
            payloads: one for each of `ids`.
        """
        ...

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        """The weighted mean over all workers' rows, by all-reduce. Shapes: (k, m), (k,), () -> (m,).

        Args:
            total: sum of all workers' weights, which one `peek` finds for several means.
        """
        ...

    def peek(self, x: Tensor) -> Tensor:
        """All rows, not metered: the adversary's view, and the bookkeeper's. Shapes: (k, m) -> (n, m)."""
        ...

    def collect(self, payload: Payload) -> list[Payload]:
        """One payload of each process, at every process, by rank; not metered."""
        ...

    def share(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree that rank 0 has, in every process that runs the server's half."""
        ...

    def leave(self) -> None:
        """The last call, where others should know."""
        ...


class LocalWorld:
    """All n workers in this process: the simulation.

    Args:
        n: workers, >= 1.
        ids: those of them whose half of a scheme runs here, where a server runs the rest; all when None.
    Raises:
        ValueError: n < 1.
    """

    def __init__(self, n: int, ids: tuple[int, ...] | None = None) -> None:
        if n < 1:
            raise ValueError(f"a world needs at least one worker, got n={n}")
        self.size, self.workers = n, tuple(range(n))
        self.ids = tuple(range(n)) if ids is None else ids
        self.rank = 0
        self.serves, self.received_bytes = False, None
        self.processes: list[dict[str, Any]] = []

    def __repr__(self) -> str:
        return f"LocalWorld({self.size})"

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        assert len(payloads) == self.size
        return [self._checked(p, limit_bytes) for p in payloads]

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        return [self._checked(payloads[worker], limit_bytes) for worker in workers]

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        # shares rounded to 16 bits would not add up to one
        share = (weights / total).to(x.device, wide(x.dtype))
        return (share @ x.to(share.dtype)).to(x.dtype)

    def begin(self, opened: RoundRequest, run: str, memories: dict[str, Any]) -> None:
        pass

    def tell(self, numbers: Tensor) -> Tensor:
        return self.peek(numbers)

    def peek(self, x: Tensor) -> Tensor:
        assert len(x) == self.size
        return x

    def collect(self, payload: Payload) -> list[Payload]:
        return [payload]

    def share(self, tree: dict[str, Any]) -> dict[str, Any]:
        return tree

    def leave(self) -> None:
        pass

    @staticmethod
    def _checked(payload: Payload | None, limit_bytes: int) -> Payload | BadPayload:
        if payload is None:
            return BadPayload("nothing arrived")
        size = payload_bytes(payload)
        return payload if size <= limit_bytes else BadPayload(f"{size} bytes, at most {limit_bytes} allowed")

# SPDX-License-Identifier: Apache-2.0
"""The workers of a world that take part in a round, as a world of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from phalanx.core.payload import BadPayload, Payload
from phalanx.core.round_request import RoundRequest
from phalanx.core.world import World


class SubsetTransport:
    """A world's workers who take part in a round; of the others nothing is sent and nothing is missed.

    Args:
        workers: ascending.
    """

    def __init__(self, world: World, workers: tuple[int, ...]) -> None:
        self._world, self.workers = world, workers
        self.size = len(workers)
        asked = set(workers)
        self.ids = tuple(worker for worker in world.ids if worker in asked)
        self.rank, self.serves = world.rank, world.serves

    def __repr__(self) -> str:
        return f"Part({self._world!r}, {self.workers})"

    @property
    def processes(self) -> list[dict[str, Any]]:
        return self._world.processes

    @property
    def received_bytes(self) -> int | None:
        return self._world.received_bytes

    def begin(self, opened: RoundRequest, run: str, memories: dict[str, Any]) -> None:
        self._world.begin(opened, run, memories)

    def tell(self, numbers: Tensor) -> Tensor:
        return self._world.tell(self._spread(numbers))[list(self.workers)]

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        arrived = self._world.gather(self._all(payloads), limit_bytes)
        return [arrived[worker] for worker in self.workers]

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        return self._world.fetch(self._all(payloads), workers, limit_bytes)

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        return self._world.mean(self._spread(x), self._spread(weights), total)

    def peek(self, x: Tensor) -> Tensor:
        return self._world.peek(self._spread(x))[list(self.workers)]

    def collect(self, payload: Payload) -> list[Payload]:
        return self._world.collect(payload)

    def share(self, tree: dict[str, Any]) -> dict[str, Any]:
        return self._world.share(tree)

    def leave(self) -> None:
        self._world.leave()

    def _all(self, payloads: Sequence[Payload | None]) -> list[Payload | None]:
        """One for each worker that this process plays; a server plays none."""
        have = dict(zip(self.ids, payloads, strict=True))
        return [have.get(worker) for worker in self._world.ids]

    def _spread(self, x: Tensor) -> Tensor:
        """Zeros for the workers played here that take no part. Shapes: (k, ...) -> (k', ...)."""
        if self.ids == self._world.ids:
            return x
        out = x.new_zeros((len(self._world.ids), *x.shape[1:]))
        out[[self._world.ids.index(worker) for worker in self.ids]] = x
        return out

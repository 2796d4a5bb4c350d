# SPDX-License-Identifier: Apache-2.0
"""A collective or a server's transport that is restricted to the workers chosen for a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from phalanx.core.payload import BadPayload, Payload
from phalanx.core.world import Collective, World
from phalanx.distributed.server_transport import ServerTransport


class SubsetTransport:
    """Some workers of another world; the others send nothing, and nothing is expected of them.

    Args:
        workers: ascending.
    """

    def __init__(self, world: World, workers: tuple[int, ...]) -> None:
        self._whole, self.workers = world, workers
        self.rank, self.size, self.gives_memory = world.rank, len(workers), world.gives_memory
        chosen = set(workers)
        self.local_workers = tuple(worker for worker in world.local_workers if worker in chosen)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._whole!r}, {self.workers})"

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        arrived = self._whole.gather(self._payloads_of_all(payloads), limit_bytes)
        return [arrived[worker] for worker in self.workers]

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        return self._whole.fetch(self._payloads_of_all(payloads), workers, limit_bytes)

    def broadcast(self, tree: dict[str, Any]) -> dict[str, Any]:
        return self._whole.broadcast(tree)

    def all_gather_payloads(self, payload: Payload) -> list[Payload]:
        return self._whole.all_gather_payloads(payload)

    def close(self) -> None:
        self._whole.close()

    def _payloads_of_all(self, payloads: Sequence[Payload | None]) -> list[Payload | None]:
        """One payload for each local worker of the whole world, None for those that are not chosen."""
        by_worker = dict(zip(self.local_workers, payloads, strict=True))
        return [by_worker.get(worker) for worker in self._whole.local_workers]


class SubsetCollective(SubsetTransport):
    """Some workers of another collective.

    Args:
        workers: ascending.
    """

    def __init__(self, collective: Collective, workers: tuple[int, ...]) -> None:
        super().__init__(collective, workers)
        self._collective = collective
        self.left_out = collective.left_out & set(workers)
        self.echoes = collective.echoes

    def mean(self, x: Tensor, weights: Tensor, total: Tensor) -> Tensor:
        return self._collective.mean(self._rows_of_all(x), self._rows_of_all(weights), total)

    def all_gather(self, x: Tensor) -> Tensor:
        return self._collective.all_gather(self._rows_of_all(x))[list(self.workers)]

    def all_to_all(
        self, parts: Sequence[Sequence[Payload | None]], limit_bytes: int
    ) -> list[list[Payload | BadPayload]]:
        by_worker = dict(zip(self.local_workers, parts, strict=True))
        places = {worker: i for i, worker in enumerate(self.workers)}
        everyone = self._collective.workers
        none: Sequence[Payload | None] = [None] * self.size
        of_all = [
            [by_worker.get(worker, none)[places[to]] if to in places else None for to in everyone]
            for worker in self._collective.local_workers
        ]
        arrived = dict(
            zip(self._collective.local_workers, self._collective.all_to_all(of_all, limit_bytes), strict=True)
        )
        return [[arrived[worker][sender] for sender in self.workers] for worker in self.local_workers]

    def _rows_of_all(self, x: Tensor) -> Tensor:
        """The rows, and zeros for the local workers that are not chosen. Shapes: (k, ...) -> (k', ...)."""
        everyone = self._collective.local_workers
        if self.local_workers == everyone:
            return x
        out = x.new_zeros((len(everyone), *x.shape[1:]))
        out[[everyone.index(worker) for worker in self.local_workers]] = x
        return out


class LeavingOut(SubsetCollective):
    """A collective that does not read the messages of some workers; each is an erasure with a reason.

    Args:
        reasons: by worker, why it is left out.
    """

    def __init__(self, collective: Collective, reasons: Mapping[int, str]) -> None:
        super().__init__(collective, collective.workers)
        self._reasons, self.left_out = reasons, frozenset(reasons)

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        arrived = super().gather(payloads, limit_bytes)
        reasons = map(self._reasons.get, self.workers)
        return [BadPayload(why) if why else payload for why, payload in zip(reasons, arrived, strict=True)]


def subset_of(world: Collective | ServerTransport, workers: tuple[int, ...]) -> World:
    """The workers of a world that are chosen for a round; the world itself where all are."""
    if len(workers) == world.size:
        return world
    if isinstance(world, ServerTransport):
        return SubsetTransport(world, workers)
    return SubsetCollective(world, workers)

# SPDX-License-Identifier: Apache-2.0
"""What a server needs of a network: requests go out to workers in other processes, and their reports come in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from phalanx.core.payload import BadPayload, Payload
from phalanx.core.trees import State
from phalanx.distributed.round_request import RoundRequest


def metrics_to_payload(metrics: Mapping[int, Mapping[str, float]]) -> Payload:
    """What clients measured as a payload; `metrics_from` is the inverse."""
    return {
        f"{worker}/{name}": torch.tensor(value, dtype=torch.float64)
        for worker, numbers in metrics.items()
        for name, value in numbers.items()
    }


def metrics_from(payload: Payload, workers: Sequence[int]) -> dict[int, dict[str, float]]:
    """What these workers measured; what is no number, or about another worker, is ignored."""
    metrics: dict[int, dict[str, float]] = {worker: {} for worker in workers}
    names = {str(worker): worker for worker in workers}
    for key, value in payload.items():
        head, _, name = key.partition("/")
        if head in names and value.numel() == 1 and value.dtype == torch.float64:
            metrics[names[head]][name] = float(value)
    return {worker: numbers for worker, numbers in metrics.items() if numbers}


class ServerTransport(ABC):
    """The n workers of a server, each in another process.

    This process runs the server's half of the scheme only. A round calls `start_round`, `receive_reports` and then,
    through the scheme's wire stage, `gather` and `fetch`. A worker that crashes, hangs, is late or sends what no worker
    writes is a BadPayload with the reason; it never stops the run.

    The class attribute `needs_quorum` says that a round is lost unless the rows of more than half of the workers that
    were asked have come and were admitted.

    Args:
        n: workers.
    """

    needs_quorum: ClassVar[bool] = False

    def __init__(self, n: int) -> None:
        self.rank, self.size, self.workers = 0, n, tuple(range(n))
        self.local_workers: tuple[int, ...] = ()
        self.gives_memory = True

    @property
    @abstractmethod
    def processes(self) -> list[dict[str, Any]]:
        """The workers of each process that has connected, and where it runs."""

    @property
    def gone(self) -> list[int]:
        """The workers that are away now; none where nobody knows."""
        return []

    @property
    def received_bytes(self) -> int | None:
        """Bytes that reached the sockets of this process so far; None where nothing counts them."""
        return None

    @abstractmethod
    def start_round(self, request: RoundRequest, run: str, memories: State) -> None:
        """Sends the request of a round to the workers.

        Args:
            run: the run's expression, for workers that do not know it yet.
            memories: the workers' memories from a checkpoint, for the same.
        """

    @abstractmethod
    def receive_reports(self, num_metrics: int) -> Tensor:
        """Waits for the reports of the round; returns the metrics of each worker, NaN where no report came in time.

        Shapes: -> (n, num_metrics) float64.
        """

    @abstractmethod
    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        """The payload that each worker's report of this round brought.

        Args:
            payloads: none, as no worker computes here.
        """

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        """The payloads that these workers keep until the server asks for them.

        Args:
            payloads: none, as no worker computes here.
        Raises:
            ValueError: over this transport workers send all of their payload at once.
        """
        raise ValueError(f"{self!r} has workers send all of their payload at once; use gather(...) in the scheme")

    def evaluate_clients(self, request: RoundRequest) -> dict[int, dict[str, float]]:
        """What each client measured on test examples of its own: "examples", their number, "loss" and the metrics.

        Clients that do not answer in time are left out; nobody answers over a transport that does not ask.
        """
        return {}

    @abstractmethod
    def collect_memories(self) -> list[State]:
        """What the workers of each process remember, of those that answer in time; for a checkpoint."""

    def broadcast(self, tree: dict[str, Any]) -> dict[str, Any]:
        """The tree as it is: no other process runs the server's half."""
        return tree

    def all_gather_payloads(self, payload: Payload) -> list[Payload]:
        """The payload alone: no other process runs the server's half."""
        return [payload]

    def close(self) -> None:
        """Ends the run for every process, where the transport has processes of its own."""
        return

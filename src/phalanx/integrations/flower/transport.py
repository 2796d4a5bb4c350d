# SPDX-License-Identifier: Apache-2.0
"""The workers of a run as nodes of Flower; none of them can stop it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from phalanx.core.payload import BadPayload, Payload
from phalanx.core.trees import State, from_payload, memories_of, to_payload
from phalanx.distributed.round_request import RoundRequest
from phalanx.distributed.server.membership import Timeouts
from phalanx.distributed.server_transport import ServerTransport, metrics_from
from phalanx.integrations.flower.messaging import arrived, push
from phalanx.integrations.flower.node_registry import Node, NodeRegistry, log
from phalanx.integrations.flower.records import (
    ABOUT,
    MEMORY,
    ORDER,
    OWN,
    PACKED,
    ROUND,
    RUN,
    SHARED,
    TESTED,
    Report,
    array,
    carried,
    report_of,
)


class FlowerTransport(ServerTransport):
    """n workers, each a node of Flower that answers a request with its payload.

    A client that crashes, hangs, leaves, raises, or sends what no client writes is an erasure, with the reason in the
    results; the run goes on.

    Args:
        n: workers.
        grid: of the ServerApp.
        timeouts: how long to wait.
        poll_s: between two looks for replies.
        owners: the worker of each node, by the node's id; None lets each node claim one.
    """

    def __init__(
        self, n: int, grid: Grid, timeouts: Timeouts, poll_s: float = 0.2, owners: Mapping[int, int] | None = None
    ) -> None:
        super().__init__(n)
        self._grid, self._timeouts, self._poll_s = grid, timeouts, poll_s
        self.registry = NodeRegistry(n, grid, timeouts.first_s, owners)
        self._nodes: dict[int, Node] = {}
        self._asked: dict[str, Node] = {}
        self._reports: dict[int, Report | BadPayload] = {}
        self._run = ""
        self._seen: set[int] = set()  # workers that have answered a request of this process
        self._began, self._first, self._usual_s = 0.0, True, timeouts.first_s

    def __repr__(self) -> str:
        return f"FlowerTransport({self.size})"

    def join(self, least: int = 1) -> None:
        """Waits until every worker has a node, or the timeouts for that is over.

        Raises:
            ValueError: fewer than `least` have one.
        """
        until = time.monotonic() + self._timeouts.join_s
        while len(self.registry.refresh()) < self.size and time.monotonic() < until:
            time.sleep(self._poll_s)
        found = self.registry.present
        if len(found) < least:
            raise ValueError(
                f"{len(found)} of {self.size} workers have a node after {self._timeouts.join_s:g} s, and the run needs "
                f"{least}; start SuperNodes with partition-id from 0 to {self.size - 1}, or wait longer (join_s)"
            )
        if missing := [worker for worker in self.workers if worker not in found]:
            log.warning("no node has partition-id %s; the run begins without", ", ".join(map(str, missing)))

    @property
    def processes(self) -> list[dict[str, Any]]:
        """The worker and the id of each node that plays one."""
        return [{"workers": [worker], "node": node.id} for worker, node in self.registry.present.items()]

    def start_round(self, request: RoundRequest, run: str, memories: State) -> None:
        """Sends every chosen worker its request."""
        self._began, self._reports, self._run = time.monotonic(), {}, run
        self._nodes = {w: node for w, node in self.registry.refresh(again=True).items() if w in set(request.clients)}
        for worker in request.clients:
            if worker not in self._nodes:
                self._reports[worker] = BadPayload(f"no node has partition-id {worker}")
        for node in self._nodes.values():
            node.backoff_rounds = max(0, node.backoff_rounds - 1)
        needed = array(request.shared_payload())
        later = request.round_index > 0 and request.required is not None
        whole = array(request.shared_payload(whole_model=True)) if later else needed
        messages = []
        for worker, node in self._nodes.items():
            # equal arrays are sent to Flower's SuperLink once
            arrays = {SHARED: needed if node.has_model else whole, OWN: array(request.for_worker(worker))}
            content = RecordDict(
                {ORDER: ArrayRecord(arrays), ABOUT: ConfigRecord({ROUND: request.round_index, RUN: run})}
            )
            if worker not in self._seen and (memory := memories_of(memories, (worker,))):
                content[MEMORY] = ArrayRecord({PACKED: array(to_payload(memory))})
            messages.append(self._message(content, node, "train", str(request.round_index + 1)))
        self._send(messages, list(self._nodes.values()))

    def _message(self, content: RecordDict, node: Node, kind: str, group: str = "") -> Message:
        # a request that nobody waits for any more need not be carried out
        return Message(content, node.id, kind, ttl=self._timeouts.first_s, group_id=group)

    def _send(self, messages: list[Message], nodes: list[Node]) -> None:
        self._asked = {}
        for node, message_id in zip(nodes, push(self._grid, messages), strict=True):
            if message_id is None:
                self._reports[node.worker] = BadPayload("Flower did not accept the message to it")
            else:
                self._asked[message_id] = node

    def receive_reports(self, num_metrics: int) -> Tensor:
        times = list[float]()
        awaited = [node for node in self._asked.values() if not node.backoff_rounds] or list(self._asked.values())
        table = torch.full((self.size, num_metrics), float("nan"), dtype=torch.float64)

        def enter(node: Node, reply: Message | BadPayload) -> None:
            report = reply if isinstance(reply, BadPayload) else report_of(reply)
            self._reports[node.worker] = report
            times.append(time.monotonic() - self._began)
            if isinstance(report, Report):
                node.reported(report.remembers)
                self._seen.add(node.worker)
                table[node.worker] = 0.0
                table[node.worker, 0] = report.loss

        late = self._wait(awaited, lambda: self._timeouts.round_s(times, len(awaited), self._first), enter)
        waited = time.monotonic() - self._began
        for node in late:
            self._reports[node.worker] = BadPayload(f"no answer within {waited:.1f} s")
            if node in awaited:
                node.late()
        self._first, self._usual_s = False, waited
        return table

    def _wait(
        self, awaited: Sequence[Node], wait_s: Callable[[], float], enter: Callable[[Node, Message | BadPayload], None]
    ) -> list[Node]:
        """Takes replies as they come until all that are awaited are there, or the time is over; who is late."""
        while any(node in self._asked.values() for node in awaited):
            # what came while a slow reply was read is not late
            over = time.monotonic() - self._began > wait_s()
            for message_id, reply in arrived(self._grid, self._asked).items():
                enter(self._asked.pop(message_id), reply)
            if over:
                break
            if self._asked:
                time.sleep(self._poll_s)
        return list(self._asked.values())

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        assert not payloads
        found = [self._reports.get(worker) for worker in self.workers]
        return [r.payload(limit_bytes) if isinstance(r, Report) else r or BadPayload("nothing arrived") for r in found]

    def evaluate_clients(self, request: RoundRequest) -> dict[int, dict[str, float]]:
        nodes = [node for node in self.registry.refresh().values() if not node.backoff_rounds]
        content = {
            ORDER: ArrayRecord({SHARED: array(request.shared_payload(whole_model=True))}),
            ABOUT: ConfigRecord({ROUND: request.round_index, RUN: self._run}),
        }
        found, self._began = dict[int, dict[str, float]](), time.monotonic()
        self._send([self._message(RecordDict(dict(content)), node, "evaluate") for node in nodes], nodes)

        def enter(node: Node, reply: Message | BadPayload) -> None:
            # metrics that cannot be read are none
            with suppress(ValueError, KeyError, AttributeError, TypeError, RecursionError):
                if isinstance(reply, Message):
                    found.update(metrics_from(carried(reply.content, TESTED), (node.worker,)))

        self._wait(nodes, lambda: self._timeouts.stretched(self._usual_s), enter)
        return found

    def collect_memories(self) -> list[State]:
        nodes = [node for node in self.registry.refresh().values() if node.remembers]
        memories, self._began = list[State](), time.monotonic()
        self._send([self._message(RecordDict(), node, "query.memory") for node in nodes], nodes)

        def enter(node: Node, reply: Message | BadPayload) -> None:
            # one that cannot be read is as lost as that of a dead client
            with suppress(ValueError, KeyError, AttributeError, TypeError, RecursionError):
                if isinstance(reply, Message):
                    tree = from_payload(carried(reply.content, MEMORY))
                    memories.append(memories_of(tree, (node.worker,)))

        self._wait(nodes, lambda: self._timeouts.stretched(self._usual_s), enter)
        return memories

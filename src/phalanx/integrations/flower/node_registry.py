# SPDX-License-Identifier: Apache-2.0
"""The registry of Flower's nodes: which node plays which worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from phalanx.core.payload import BadPayload
from phalanx.distributed.server.membership import backoff
from phalanx.integrations.flower.messaging import arrived, push
from phalanx.integrations.flower.records import METRICS, TEXT, WORKER, error_of

log = logging.getLogger("flwr.phalanx")  # shown wherever Flower's own lines are


@dataclass(eq=False)
class Node:
    """A node of Flower that plays a worker.

    Args:
        missed: rounds in a row in which it was late.
        backoff_rounds: rounds in which it is not waited for.
        has_model: whether it has the tensors of the model that no further request repeats.
        remembers: whether it has memories that a checkpoint should hold.
    """

    id: int
    worker: int
    missed: int = 0
    backoff_rounds: int = 0
    has_model: bool = False
    remembers: bool = False

    def late(self) -> None:
        """The node has not answered in time."""
        self.missed += 1
        self.backoff_rounds = backoff(self.missed)

    def reported(self, remembers: bool) -> None:
        """The node has answered a request in time."""
        self.missed, self.backoff_rounds, self.has_model, self.remembers = 0, 0, True, remembers


class NodeRegistry:
    """The nodes that are connected, and the worker that each plays.

    A worker belongs to its owner, whose key Flower binds to a node's id. Without owners each node is asked once which
    worker it plays, and the first that claims a worker gets it.

    Args:
        n: workers.
        wait_s: time for an answer; a node that gave none may be asked again.
        owners: the worker of each node, by the node's id; a node that is not named takes no part.
    """

    def __init__(self, n: int, grid: Grid, wait_s: float, owners: Mapping[int, int] | None = None) -> None:
        self._n, self._grid, self._wait_s, self._owners = n, grid, wait_s, owners
        self._nodes: dict[int, Node] = {}
        self._asked: dict[str, int] = {}
        self._strangers: set[int] = set()
        self._failed: set[int] = set()
        self._here: set[int] = set()

    def refresh(self, again: bool = False) -> dict[int, Node]:
        """Returns the present node of each worker that has one; asks new nodes, and does not wait for their answers.

        Args:
            again: also asks nodes whose answer failed.
        """
        if again:
            self._failed.clear()
        self._here = set(self._grid.get_node_ids())
        known = set(self._nodes) | self._strangers | self._failed | set(self._asked.values())
        new = sorted(self._here - known)
        if self._owners is not None:
            for node in new:
                self._assign(node, self._owners)
            return self.present
        ids = push(self._grid, [Message(RecordDict(), node, "query", ttl=self._wait_s) for node in new])
        self._asked |= {i: node for i, node in zip(ids, new, strict=True) if i is not None}
        for message_id, reply in arrived(self._grid, self._asked).items():
            self._enter(self._asked.pop(message_id), reply)
        return self.present

    def _assign(self, node: int, owners: Mapping[int, int]) -> None:
        """Gives a node the worker that it owns, whatever it would claim."""
        if node in owners:
            self._nodes[node] = Node(node, owners[node])
        else:
            self._strangers.add(node)
            log.warning("node %d takes no part: it owns no %s", node, WORKER)

    def _enter(self, node: int, reply: Message | BadPayload) -> None:
        if isinstance(reply, BadPayload) or reply.has_error():
            self._failed.add(node)
            why = str(reply) if isinstance(reply, BadPayload) else error_of(reply)
            log.warning("node %d did not tell its %s: %s", node, WORKER, why)
            return
        claim = _claim(reply)
        if isinstance(claim, int) and 0 <= claim < self._n:
            self._nodes[node] = Node(node, claim)
        else:
            self._strangers.add(node)
            most = self._n - 1
            log.warning(
                "node %d takes no part: its %s is %.*r, and workers are 0 to %d", node, WORKER, TEXT, claim, most
            )

    @property
    def present(self) -> dict[int, Node]:
        """The node of each worker that has one, as of the last refresh."""
        found: dict[int, Node] = {}
        for node in self._nodes.values():
            if node.id in self._here:
                found.setdefault(node.worker, node)
        return dict(sorted(found.items()))


def _claim(reply: Message) -> Any:
    metrics = reply.content.get(METRICS)
    claim = metrics.get(WORKER) if isinstance(metrics, MetricRecord) else None
    return None if isinstance(claim, bool) else claim

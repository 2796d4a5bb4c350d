# SPDX-License-Identifier: Apache-2.0
"""Flower's grid in this process: real messages, records and contexts, and no sockets."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from phalanx.integrations.flower import Timeouts, client_app, strategy

RUN = 7
SHORT = Timeouts(join_s=0.2, first_s=0.5, least_s=0.2, factor=2.0)
AFTER = Timeouts(join_s=60.0, first_s=60.0, least_s=30.0, factor=10.0)


class LocalGrid(Grid):
    """Nodes that answer when their replies are pulled.

    Args:
        app: of every node.
        spoils: by partition-id, what becomes of a node's reply to an order: another message, an exception that Flower
            would meet when it reads it, or None for one that never comes.
    """

    def __init__(
        self,
        app: ClientApp,
        workers: int,
        spoils: dict[int, Callable[[Message], Message | Exception | None]] | None = None,
        config: dict[str, str] | None = None,
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
        self.app, self.spoils, self.config = app, spoils or {}, config or {}
        self.nodes: dict[int, Context] = {}
        self.sent: list[Message] = []
        self.waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)
        self._numbers = itertools.count(100)
        for worker in range(workers):
            self.add(worker)

    def add(self, partition: object) -> int:
        """A new node, with an id that none had before."""
        node = next(self._numbers)
        self.nodes[node] = Context(RUN, node, {"partition-id": partition}, RecordDict(), dict(self.config))
        return node

    def node(self, partition: int) -> int:
        return next(n for n, c in self.nodes.items() if c.node_config["partition-id"] == partition)

    def set_run(self, run: object) -> None:
        raise AssertionError

    @property
    def run(self) -> object:
        raise AssertionError

    def create_message(self, *args: object, **options: object) -> Message:
        raise AssertionError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(next(self._ids))
            ids.append(message.metadata.message_id)
            self.waiting[ids[-1]] = copy.deepcopy(message)
            self.sent.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for message_id in message_ids:
            message = self.waiting.pop(message_id, None)
            reply = None if message is None else self.reply(message)
            if isinstance(reply, Exception):
                raise reply
            if reply is not None:
                found.append(reply)
        return found

    def reply(self, message: Message) -> Message | Exception | None:
        context = self.nodes.get(message.metadata.dst_node_id)
        if context is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        try:
            reply = self.app(message, context)
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        spoil = (
            self.spoils.get(context.node_config["partition-id"]) if message.metadata.message_type == "train" else None
        )
        return copy.deepcopy(reply) if spoil is None else spoil(copy.deepcopy(reply))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError(f"waits in steps of 3 s, at {time.time()}")


def conducted(run, grid=None, timeouts=AFTER, spoils=None, **options):
    grid = grid or LocalGrid(client_app(run), run.workers, spoils)
    return strategy(run, timeouts=timeouts, poll_s=0.01, **options).start(grid)

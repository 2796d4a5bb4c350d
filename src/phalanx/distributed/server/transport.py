# SPDX-License-Identifier: Apache-2.0
"""A parameter server over gRPC: the workers are in other processes, and none of them can stop it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from secrets import token_hex
from typing import Any, ClassVar

import torch
from torch import Tensor

from phalanx.core.codec import most_bytes
from phalanx.core.expression import require
from phalanx.core.packing import ReceiveBuffers, Unpacker
from phalanx.core.payload import BadPayload, Payload, payload_bytes
from phalanx.core.registry import extensions
from phalanx.core.trees import State, from_payload, memories_of, to_payload
from phalanx.core.world import checked_payload
from phalanx.distributed.round_request import RoundRequest
from phalanx.distributed.server.identity import Keys
from phalanx.distributed.server.membership import Member, Membership, Timeouts
from phalanx.distributed.server.messages import Kind, message
from phalanx.distributed.server_transport import ServerTransport, metrics_from

NUMBERS = "numbers"  # key of a report's numbers, beside "worker/key" of its payloads
_SLACK_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What a message of a process says, unpacked.

    Args:
        numbers: metrics of its workers.
        payloads: of its workers, or why there is none.
        memories: of its workers.
        metrics: of its workers on test examples of their own.
    """

    kind: Kind
    round: int
    numbers: Tensor | None = None
    payloads: dict[int, Payload | BadPayload] = field(default_factory=dict)
    memories: State = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)


class _Rooms:
    """The memory that the payloads of a round arrive in.

    Args:
        kind: of the answers that bring them.
        workers: whose payloads have a place in its tables.
        row_bytes: of one payload, as of a row.
    """

    def __init__(self, kind: Kind, round: int, workers: tuple[int, ...], row_bytes: int) -> None:
        self.kind, self.round, self.workers = kind, round, workers
        self.buffers = ReceiveBuffers(len(workers), row_bytes)
        self.arriving: list[weakref.ref[Unpacker]] = []

    def drop(self) -> None:
        """Gives up what still arrives."""
        for reference in self.arriving:
            if (unpacker := reference()) is not None:
                unpacker.drop()


class GrpcTransport(ServerTransport):
    """n workers in other processes, which connect to this one.

    This process is the server and runs no worker. A worker that crashes, hangs, is late or sends what no worker writes
    is an erasure, with the reason in the results; the run goes on. `phalanx run --server` under torchrun starts the
    processes.

    Args:
        n: workers.
        processes: that play them, in contiguous blocks.
        timeouts: how long to wait.
        host: address to listen at; this machine only if left out.
        secrets: of the processes, on one machine; made anew when empty.
        keys: of the server, for TLS beyond one machine.
        left: called when the run has ended for all.
    Raises:
        ValueError: fewer workers than processes, or no process.
    """

    needs_quorum: ClassVar[bool] = True

    def __init__(
        self,
        n: int,
        processes: int,
        timeouts: Timeouts | None = None,
        host: str = "127.0.0.1",
        secrets: Sequence[str] = (),
        keys: Keys | None = None,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        require(1 <= processes <= n, f"a server of n={n} workers needs 1 to {n} worker processes, got {processes}")
        super().__init__(n)
        bounds = [r * n // processes for r in range(processes + 1)]
        shares = [tuple(range(a, b)) for a, b in pairwise(bounds)]
        self._payload_bytes = self._row_bytes = _SLACK_BYTES
        self.secrets = tuple(secrets) or tuple(token_hex(32) for _ in range(processes))
        self._index, self._left = -1, left
        self._rooms = _Rooms(Kind.REPORT, -1, tuple(range(n)), 0)
        self._first: dict[int, Payload | BadPayload] = {}
        self._numbers: dict[int, Tensor] = {}
        self.membership = Membership(
            shares, timeouts or Timeouts(), self._longest, self._arriving, self._unpacked, host, self.secrets, keys
        )

    def __repr__(self) -> str:
        return f"GrpcTransport({self.size}, {len(self.membership.all)} processes)"

    @property
    def processes(self) -> list[dict[str, Any]]:
        """Workers, host and process id of each process that has connected."""
        return [{"workers": list(member.workers), **member.about} for member in self.membership.all if member.about]

    @property
    def received_bytes(self) -> int:
        """What reached this process's sockets so far."""
        return self.membership.received_bytes

    def start_round(self, request: RoundRequest, run: str, memories: State) -> None:
        """Sends every process the model of a round; one that is behind gets it when it is ready."""
        index, weights = request.round_index, request.payload()
        self._index, self._first, self._numbers = index, {}, {}
        self.membership.begin()
        size = payload_bytes(weights)
        # a codec may lengthen a row, to this at most; what a worker sends is checked again later
        entries = sum(tensor.numel() for tensor in weights.values())
        self._payload_bytes = _SLACK_BYTES + most_bytes(entries)
        self._row_bytes = _SLACK_BYTES + size
        self._make_room(Kind.REPORT, range(self.size))
        order = message(Kind.ORDER, index, weights)
        for member in self.membership.all:
            if member.line is None:
                continue
            if not member.knows_run:
                brief = {
                    "run": run,
                    "modules": extensions(),
                    "memories": memories_of(memories, member.workers),
                }
                member.line.send(message(Kind.SETUP, index, to_payload(brief)))
                member.knows_run = True
            member.line.send(order)

    def receive_reports(self, num_metrics: int) -> Tensor:
        while missing := [
            member for member in self.membership.all if member.awaited and member.workers[0] not in self._first
        ]:
            arrived = self.membership.next(self.membership.deadline)
            if arrived is None:
                for member in missing:
                    self.membership.late(member)
                break
            member, answer = arrived
            if answer is not None and (answer.kind, answer.round) == (Kind.REPORT, self._index):
                self._enter(member, answer, num_metrics)
        self.membership.ended()
        table = torch.full((self.size, num_metrics), float("nan"), dtype=torch.float64)
        for worker, row in self._numbers.items():
            table[worker] = row.to(table)
        return table

    def _make_room(self, kind: Kind, workers: Sequence[int]) -> None:
        """Makes a table for the payloads of these workers; what still arrives for an earlier table is given up."""
        former, self._rooms = self._rooms, _Rooms(kind, self._index, tuple(workers), self._row_bytes)
        former.drop()

    def _longest(self, process: int, kind: Kind) -> int:
        """The bytes that an answer may have: a process speaks for its own workers, and holds one payload at a time."""
        if kind == Kind.TESTED:
            return _SLACK_BYTES
        return self._payload_bytes * (1 if kind == Kind.HELD else len(self.membership.all[process].workers))

    def _enter(self, member: Member, report: Answer, num_metrics: int) -> None:
        self.membership.reported(member)
        self._first |= report.payloads
        numbers = report.numbers
        if numbers is not None and numbers.shape == (len(member.workers), num_metrics) and numbers.is_floating_point():
            self._numbers |= dict(zip(member.workers, numbers, strict=True))

    def _arriving(self, process: int, kind: Kind, round: int, length: int) -> Unpacker:
        """What unpacks an answer while it arrives: payloads go straight to their place in the table of the rows."""
        workers, rooms = self.membership.all[process].workers, self._rooms
        order = rooms.workers if (kind, round) == (rooms.kind, rooms.round) else ()
        unpacker = Unpacker(length, partial(_room, workers, rooms.buffers, order))
        rooms.arriving.append(weakref.ref(unpacker))
        return unpacker

    def _unpacked(self, member: Member, kind: Kind, round: int, content: Unpacker) -> Answer:
        """The content of an answer, in the thread that unpacks; whatever is wrong with it is its sender's erasure."""
        try:
            if kind == Kind.MEMORY:
                tree = from_payload(content.payload)
                return Answer(kind, round, memories=memories_of(tree, member.workers))
            if kind == Kind.TESTED:
                return Answer(kind, round, metrics=metrics_from(content.payload, member.workers))
            numbers, payloads = _divided(kind, content, member.workers)
        except Exception as error:
            why = BadPayload(f"a message that cannot be read ({type(error).__name__})")
            return Answer(kind, round, payloads=dict.fromkeys(member.workers, why))
        return Answer(kind, round, numbers, payloads)

    def gather(self, payloads: Sequence[Payload | None], limit_bytes: int) -> list[Payload | BadPayload]:
        assert not payloads
        # nothing of a round stays here once its scheme has it
        first, self._first = self._first, {}
        self._make_room(Kind.REPORT, ())
        return [self._checked(worker, first.get(worker), limit_bytes) for worker in range(self.size)]

    def fetch(
        self, payloads: Sequence[Payload | None], workers: Sequence[int], limit_bytes: int
    ) -> list[Payload | BadPayload]:
        assert not payloads
        found: dict[int, Payload | BadPayload] = {}
        self._make_room(Kind.HELD, workers)
        waiting = set(workers)
        for worker in workers:
            member = self.membership.of(worker)
            # one that connected anew in this round has not computed it
            if (line := member.line) is None or not member.knows_run:
                waiting.discard(worker)
            else:
                line.send(message(Kind.ASK, self._index, {"worker": torch.tensor([worker])}))
        until = self.membership.answer_deadline
        while waiting:
            arrived = self.membership.next(until)
            if arrived is None:
                for member in {self.membership.of(worker) for worker in waiting}:
                    self.membership.late(member)
                break
            member, answer = arrived
            if answer is None:
                waiting -= set(member.workers) if member.line is None or not member.knows_run else set()
            elif (answer.kind, answer.round) == (Kind.HELD, self._index):
                answers = {worker: payload for worker, payload in answer.payloads.items() if worker in waiting}
                found |= answers
                waiting -= set(answers)
        self._make_room(Kind.HELD, ())
        return [self._checked(worker, found.get(worker), limit_bytes) for worker in workers]

    def collect_memories(self) -> list[State]:
        asked = {member for member in self.membership.all if member.awaited}
        for member in asked:
            assert member.line is not None
            member.line.send(message(Kind.RECALL, self._index))
        memories, until = list[State](), self.membership.answer_deadline
        while asked:
            arrived = self.membership.next(until)
            if arrived is None:
                break
            member, answer = arrived
            if answer is None:
                asked.discard(member)
            elif answer.kind == Kind.MEMORY and member in asked:
                asked.discard(member)
                # one that cannot be read is as lost as that of a dead worker
                memories += [answer.memories] if answer.memories else []
        return memories

    @property
    def gone(self) -> list[int]:
        return self.membership.gone

    def evaluate_clients(self, request: RoundRequest) -> dict[int, dict[str, float]]:
        asked = {member for member in self.membership.all if member.awaited and member.knows_run}
        test = message(Kind.TEST, request.round_index, request.payload())
        for member in asked:
            assert member.line is not None
            member.line.send(test)
        found, until = dict[int, dict[str, float]](), self.membership.answer_deadline
        while asked:
            arrived = self.membership.next(until)
            if arrived is None:
                break
            member, answer = arrived
            if answer is None:
                asked.discard(member)
            elif (answer.kind, answer.round) == (Kind.TESTED, request.round_index) and member in asked:
                asked.discard(member)
                found |= answer.metrics
        return found

    def close(self) -> None:
        """Ends the run for every process."""
        self.membership.close()
        self._left()

    def _checked(self, worker: int, payload: Payload | BadPayload | None, limit_bytes: int) -> Payload | BadPayload:
        return checked_payload(payload, limit_bytes, self.membership.of(worker).gone or "nothing arrived")


def _room(workers: tuple[int, ...], buffers: ReceiveBuffers, order: Sequence[int], name: str, size: int) -> Tensor:
    """Memory for a tensor of a process's answer.

    Args:
        workers: of the process.
        order: the workers that have a receive buffer.
    """
    head, _, key = name.partition("/")
    worker = next((w for w in workers if str(w) == head), -1)
    if worker not in order:
        return torch.empty(size, dtype=torch.uint8)
    return buffers.buffer_for(order.index(worker), key, size)


def _divided(
    kind: Kind, content: Unpacker, workers: tuple[int, ...]
) -> tuple[Tensor | None, dict[int, Payload | BadPayload]]:
    """Numbers and payloads of a process's workers; what it says of other workers is ignored."""
    try:
        parts = content.payload
    except BadPayload as error:
        return None, dict.fromkeys(workers, error)
    payloads: dict[int, dict[str, Tensor]] = {worker: {} for worker in workers}
    names = {str(worker): worker for worker in workers}
    for name, tensor in parts.items():
        head, _, key = name.partition("/")
        if head in names:
            payloads[names[head]][key] = tensor
    if kind == Kind.HELD:
        return None, {worker: payload for worker, payload in payloads.items() if payload}
    return parts.get(NUMBERS), {w: p or BadPayload("nothing arrived") for w, p in payloads.items()}

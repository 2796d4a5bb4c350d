# SPDX-License-Identifier: Apache-2.0
"""A worker process of a server's job: it computes what the orders ask for, until the server ends the run."""

from __future__ import annotations

import json
import os
import queue
import socket
from collections import deque

import torch

from phalanx.attacks.faults import befallen
from phalanx.core.packing import pack
from phalanx.core.parser import parse
from phalanx.core.payload import Payload
from phalanx.core.trees import from_payload, memories_of, to_payload
from phalanx.core.wire_stage import Upload
from phalanx.distributed.server.messages import Connection, Kind, Message, message, write
from phalanx.distributed.server.transport import NUMBERS
from phalanx.training.phase import Run
from phalanx.training.worker_runtime import WorkerRuntime

_LIMIT_BYTES = 1 << 40  # a worker believes its server


def attend(host: str, port: int, token: str, process: int, workers: tuple[int, ...], wait_s: float = 60.0) -> None:
    """Works for a server until it ends the run or its connection is lost.

    Args:
        process: which of the server's seats to take.
        workers: of that seat.
        wait_s: for the connection.
    """
    link = socket.create_connection((host, port), timeout=wait_s)
    about = {"token": token, "process": process, "host": socket.gethostname(), "pid": os.getpid()}
    body = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8)
    write(link, Message(Kind.HELLO, 0, body))
    arrived: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    line = Connection(link, lambda _, incoming: arrived.put(incoming), lambda: _LIMIT_BYTES)
    line.start()
    desk = _Desk(workers, line)
    waiting: deque[Message | None] = deque()
    while True:
        waiting.append(arrived.get())
        while not arrived.empty():
            waiting.append(arrived.get())
        while waiting:
            incoming = waiting.popleft()
            if incoming is None or incoming.kind == Kind.END:
                line.close()
                return
            line.taken()
            # of several orders only the newest is worth the work
            if incoming.kind != Kind.ORDER or not any(m is not None and m.kind == Kind.ORDER for m in waiting):
                desk.take(incoming)


class _Desk:
    """The desk of a worker process, and what it tells the server."""

    def __init__(self, workers: tuple[int, ...], line: Connection) -> None:
        self.workers, self.line = workers, line
        self.desk: WorkerRuntime | None = None
        self.offers: dict[int, Upload] = {}
        self.index = -1

    def take(self, incoming: Message) -> None:
        match incoming.kind:
            case Kind.SETUP:
                brief = from_payload(incoming.payload())
                run = parse(brief["run"])
                assert isinstance(run, Run)
                self.desk = WorkerRuntime(run, self.workers)
                self.desk.trainer.keep(brief.get("memories", {}))
            case Kind.ORDER:
                assert self.desk is not None
                self.index = incoming.round
                self.offers, numbers = self.desk.work(self.index, incoming.payload())
                first = {worker: offer.first for worker, offer in self.offers.items()}
                self._send(Kind.REPORT, {NUMBERS: numbers, **_parts(first)})
            case Kind.ASK if incoming.round == self.index:
                worker = int(incoming.payload()["worker"])
                self._send(Kind.HELD, _parts({worker: self.offers[worker].held}))
            case Kind.RECALL:
                kept = self.desk.trainer.kept if self.desk is not None else {}
                self.line.send(message(Kind.MEMORY, self.index, to_payload(memories_of(kept, self.workers))))
            case _:
                pass

    def _send(self, kind: Kind, payload: Payload) -> None:
        assert self.desk is not None
        body = befallen(self.desk.run.faults, self.workers, self.index, pack(payload))
        self.line.send(Message(kind, self.index, body))


def _parts(payloads: dict[int, Payload | None]) -> Payload:
    """Payloads of several workers as one."""
    return {f"{worker}/{key}": tensor for worker, p in payloads.items() if p is not None for key, tensor in p.items()}

# SPDX-License-Identifier: Apache-2.0
"""A worker process of a server's job: it computes what the orders ask for, until the server ends the run."""

from __future__ import annotations

import json
import os
import queue
import socket
from collections import deque

import torch

from phalanx.checkpoint import from_payload, memories_of, to_payload
from phalanx.crossing import Offer, worker_half
from phalanx.fault import befallen
from phalanx.parser import parse
from phalanx.phase import Run
from phalanx.round import Round
from phalanx.train import Trainer
from phalanx.wire import pack
from phalanx.world import LocalWorld, Payload
from phalanx.worlds.post import Connection, Kind, Message, message, write
from phalanx.worlds.server import NUMBERS

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
    """What a worker process has at hand: the run, its model, its memories, and the payloads of the present round."""

    def __init__(self, workers: tuple[int, ...], line: Connection) -> None:
        self.workers, self.line = workers, line
        self.trainer: Trainer | None = None
        self.offers: list[Offer] = []
        self.index = -1

    def take(self, incoming: Message) -> None:
        match incoming.kind:
            case Kind.SETUP:
                brief = from_payload(incoming.payload())
                run = parse(brief["run"])
                assert isinstance(run, Run)
                self.trainer = Trainer(run, LocalWorld(run.workers, self.workers))
                self.trainer.keep(brief.get("memories", {}))
            case Kind.ORDER:
                self._work(incoming.round, incoming.payload())
            case Kind.ASK if incoming.round == self.index:
                worker = int(incoming.payload()["worker"])
                held = self.offers[self.workers.index(worker)].held
                self._send(Kind.HELD, _parts({worker: held}))
            case Kind.RECALL:
                self.line.send(
                    message(
                        Kind.MEMORY,
                        self.index,
                        to_payload(memories_of(self.trainer.kept if self.trainer is not None else {}, self.workers)),
                    )
                )
            case _:
                pass

    def _work(self, index: int, asked: Payload) -> None:
        trainer = self.trainer
        assert trainer is not None
        run = trainer.config
        order = from_payload(asked)
        changed = trainer.learner.follow(order.get("shapes", {}), order["model"])
        trainer.answers = {int(worker): answer for worker, answer in order.get("answers", {}).items()}
        number, at = trainer.phase_at(index)
        phase = run.phases[number]
        entered = self.index >= 0 and number != trainer.phase_at(self.index)[0]
        if entered or (self.index >= 0 and changed and phase.surgery is not None):
            trainer.keep({})
        stack, losses = trainer.work(index, order["clients"].tolist())
        byzantine = run.byzantine.at(index, run.workers, run.seed)
        round = Round(index, run.seed, byzantine, trainer.world, begins=at == 0 or changed)
        self.index = index
        self.offers, trainer.state = worker_half(phase.scheme, stack, trainer.state, round)
        numbers = torch.stack([losses, torch.zeros_like(losses)], dim=1)
        first = {worker: offer.first for worker, offer in zip(stack.ids, self.offers, strict=True)}
        self._send(Kind.REPORT, {NUMBERS: numbers, **_parts(first)})

    def _send(self, kind: Kind, payload: Payload) -> None:
        assert self.trainer is not None
        body = befallen(self.trainer.config.faults, self.workers, self.index, pack(payload))
        self.line.send(Message(kind, self.index, body))


def _parts(payloads: dict[int, Payload | None]) -> Payload:
    """Payloads of several workers as one."""
    return {f"{worker}/{key}": tensor for worker, p in payloads.items() if p is not None for key, tensor in p.items()}

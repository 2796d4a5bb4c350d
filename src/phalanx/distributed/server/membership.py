# SPDX-License-Identifier: Apache-2.0
"""The worker processes as their server sees them: who is connected, who is waited for, and how long."""

from __future__ import annotations

import json
import queue
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from phalanx.core.expression import require
from phalanx.core.payload import BadPayload
from phalanx.distributed.server.messages import Connection, Kind, Message, message, read

_HELLO_BYTES, _HELLO_S = 4096, 5.0
_LONGEST_REST = 64  # rounds


def rests(lates: int) -> int:
    """Rounds in which who was late so often in a row is not waited for; one more, which the next one takes off."""
    return min(2 ** (lates - 1), _LONGEST_REST) + 1


@dataclass(frozen=True)
class Patience:
    """How long a server waits for its workers, in seconds.

    A round waits until half of the workers that are there have reported, and then until `factor` times their median
    time is over, or `least_s`. A worker that was late is not waited for in the next round, after its second time in a
    row not in the next two, then four; once it reports in time it is as good as the others.

    Args:
        join_s: for all to connect.
        first_s: for half of the workers, and for all of them in a run's first round, when kernels are compiled.
        least_s: in any round.
        factor: > 1.
    """

    join_s: float = 120.0
    first_s: float = 60.0
    least_s: float = 2.0
    factor: float = 3.0

    def __post_init__(self) -> None:
        ok = min(self.join_s, self.first_s, self.least_s) > 0 and self.factor > 1
        require(ok, f"a server's patience is above 0 s and its factor above 1, got {self}")

    def round_s(self, times: Sequence[float], awaited: int, first: bool) -> float:
        """How long a round waits, from its beginning.

        Args:
            times: seconds after which workers have reported so far.
            awaited: workers, or processes of them, that the round waits for.
            first: whether it is the run's first round.
        """
        if first or 2 * len(times) <= awaited:
            return self.first_s
        return self.stretched(statistics.median(times))

    def stretched(self, usual_s: float) -> float:
        """How long to wait for what usually takes so long."""
        return max(self.least_s, self.factor * usual_s)


@dataclass(eq=False)
class Seat:
    """A worker process.

    Args:
        workers: that it plays.
        gone: why nothing is expected of it, if nothing is.
        lates: rounds in a row in which it was late.
        rests: rounds in which it is not waited for.
        briefed: whether it knows the run.
    """

    workers: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict)
    line: Connection | None = None
    gone: str = "never connected"
    lates: int = 0
    rests: int = 0
    briefed: bool = False

    @property
    def awaited(self) -> bool:
        """Whether a round waits for it."""
        return self.line is not None and not self.rests


class Seats:
    """All worker processes of a run, and what arrives from them.

    Everything but reading and writing happens in the thread that calls.

    Args:
        shares: workers of each process.
        limit_bytes: gives the largest message to accept.
        host: address to listen at; all when empty.
    """

    def __init__(
        self, shares: Sequence[tuple[int, ...]], patience: Patience, limit_bytes: Callable[[], int], host: str = ""
    ) -> None:
        self.all = [Seat(share) for share in shares]
        self.patience, self.token = patience, secrets.token_hex(16)
        self._limit = limit_bytes
        self._of = {worker: seat for seat in self.all for worker in seat.workers}
        self._at: dict[Connection, Seat] = {}
        self._events: queue.SimpleQueue[tuple[Connection, Message | dict[str, Any] | None]] = queue.SimpleQueue()
        self._past_bytes = 0
        self._began, self._times, self._first = time.monotonic(), list[float](), True
        self._door = socket.create_server((host, 0), backlog=64)
        threading.Thread(target=self._admit, daemon=True).start()

    def of(self, worker: int) -> Seat:
        """The seat of a worker."""
        return self._of[worker]

    @property
    def port(self) -> int:
        """Where workers connect."""
        return self._door.getsockname()[1]

    @property
    def received_bytes(self) -> int:
        """What reached the sockets so far."""
        return self._past_bytes + sum(seat.line.received_bytes for seat in self.all if seat.line is not None)

    def join(self) -> None:
        """Waits until every process has connected, or the patience for that is over."""
        until = time.monotonic() + self.patience.join_s
        while any(seat.line is None for seat in self.all):
            if self.next(until) is None:
                return

    def begin(self) -> None:
        """A round begins."""
        self._began, self._times = time.monotonic(), []
        for seat in self.all:
            seat.rests = max(0, seat.rests - 1)

    def reported(self, seat: Seat) -> None:
        """A report of this round has come from a seat."""
        seat.gone, seat.lates, seat.rests = "", 0, 0
        self._times.append(time.monotonic() - self._began)

    def ended(self) -> None:
        """The reports of a round are in."""
        self._first = False

    def late(self, seat: Seat) -> None:
        """Nothing has come from a seat in time."""
        seat.lates += 1
        seat.rests = rests(seat.lates)
        if not seat.gone:
            seat.gone = f"no answer within {time.monotonic() - self._began:.1f} s"

    @property
    def deadline(self) -> float:
        """Until when this round waits for reports."""
        awaited = sum(seat.awaited for seat in self.all)
        return self._began + self.patience.round_s(self._times, awaited, self._first)

    @property
    def answer_deadline(self) -> float:
        """Until when a question that is asked now waits for its answer."""
        now = time.monotonic()
        return now + (self.patience.first_s if self._first else self.patience.stretched(now - self._began))

    def next(self, until: float) -> tuple[Seat, Message | None] | None:
        """The next message, or the end of a connection (None in its place); None when the time is over.

        A process that connects is seated on the way.
        """
        while True:
            left = until - time.monotonic()
            try:
                # late by a moment of this process, not of the worker
                line, event = self._events.get(timeout=max(left, 0.001)) if left > -1 else self._events.get_nowait()
            except queue.Empty:
                return None
            if isinstance(event, dict):
                seat = self._sit(line, event)
            elif line not in self._at:
                continue
            elif event is None:
                seat = self._at.pop(line)
                self._past_bytes += line.received_bytes
                seat.line, seat.gone = None, line.why_ended
            else:
                line.taken()
                return self._at[line], event
            if seat is not None:
                return seat, None

    def _sit(self, line: Connection, about: dict[str, Any]) -> Seat | None:
        """Gives a process that connected its seat, unless another has it."""
        seat = self.all[about["process"]]
        if seat.line is not None:
            line.close()
            return None
        seat.line, seat.gone, seat.about, seat.briefed = line, "nothing arrived", about, False
        seat.lates = seat.rests = 0
        self._at[line] = seat
        line.start()
        return seat

    def close(self) -> None:
        """Ends the run for every process."""
        self._door.close()
        for seat in self.all:
            if seat.line is not None:
                seat.line.send(message(Kind.END))
        for seat in self.all:
            if seat.line is not None:
                seat.line.close(linger_s=0.0 if seat.rests else 2.0)

    def _admit(self) -> None:
        while True:
            try:
                link, _ = self._door.accept()
            except OSError:
                return
            # each in a thread of its own: a stranger that says nothing keeps nobody waiting
            threading.Thread(target=self._greet, args=(link,), daemon=True).start()

    def _greet(self, link: socket.socket) -> None:
        try:
            link.settimeout(_HELLO_S)
            about = json.loads(bytes(read(link, _HELLO_BYTES).body.tolist()))
            known = secrets.compare_digest(about["token"], self.token) and about["process"] in range(len(self.all))
            require(known, "a stranger")
        except (BadPayload, OSError, EOFError, ValueError, KeyError, TypeError):
            with suppress(OSError):
                link.close()
            return
        line = Connection(link, lambda line, event: self._events.put((line, event)), self._limit)
        self._events.put((line, {key: about[key] for key in ("process", "host", "pid") if key in about}))

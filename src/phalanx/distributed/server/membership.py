# SPDX-License-Identifier: Apache-2.0
"""The worker processes of a server: which are connected, which a round waits for, and how long."""

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
_MAX_BACKOFF = 64  # rounds


def backoff(missed: int) -> int:
    """Number of rounds that do not wait for a worker that missed so many in a row, and one that `begin` subtracts."""
    return min(2 ** (missed - 1), _MAX_BACKOFF) + 1


@dataclass(frozen=True)
class Timeouts:
    """How long a server waits for its workers, in seconds.

    A round waits until half of the connected workers have reported, and then until `factor` times their median time
    is over, at least `least_s`. A worker that was late is not waited for in the next round; after the second time in a
    row not in the next two rounds, then four. Once it reports in time, it is waited for as before.

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
        require(ok, f"a server's timeouts are above 0 s and their factor above 1, got {self}")

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
        """How long to wait for something that usually takes `usual_s`."""
        return max(self.least_s, self.factor * usual_s)


@dataclass(eq=False)
class Member:
    """A worker process.

    Args:
        workers: the workers that it computes.
        gone: why nothing is expected of it; empty if something is.
        missed: rounds in a row in which it was late.
        backoff_rounds: rounds in which it is not waited for.
        knows_run: whether it knows the run.
    """

    workers: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict)
    line: Connection | None = None
    gone: str = "never connected"
    missed: int = 0
    backoff_rounds: int = 0
    knows_run: bool = False

    @property
    def awaited(self) -> bool:
        """Whether a round waits for it."""
        return self.line is not None and not self.backoff_rounds


class Membership:
    """All worker processes of a run, and the messages that arrive from them.

    Only reading and writing happen in other threads than the caller's.

    Args:
        shares: workers of each process.
        limit_bytes: gives the largest message to accept.
        host: address to listen at; all when empty.
    """

    def __init__(
        self, shares: Sequence[tuple[int, ...]], timeouts: Timeouts, limit_bytes: Callable[[], int], host: str = ""
    ) -> None:
        self.all = [Member(share) for share in shares]
        self.timeouts, self.token = timeouts, secrets.token_hex(16)
        self._limit = limit_bytes
        self._of = {worker: member for member in self.all for worker in member.workers}
        self._at: dict[Connection, Member] = {}
        self._events: queue.SimpleQueue[tuple[Connection, Message | dict[str, Any] | None]] = queue.SimpleQueue()
        self._past_bytes = 0
        self._began, self._times, self._first = time.monotonic(), list[float](), True
        self._listener = socket.create_server((host, 0), backlog=64)
        threading.Thread(target=self._admit, daemon=True).start()

    def of(self, worker: int) -> Member:
        """The process that computes a worker."""
        return self._of[worker]

    @property
    def port(self) -> int:
        """The port that workers connect to."""
        return self._listener.getsockname()[1]

    @property
    def received_bytes(self) -> int:
        """Bytes that reached the sockets so far."""
        return self._past_bytes + sum(member.line.received_bytes for member in self.all if member.line is not None)

    def join(self) -> None:
        """Waits until every process has connected, `join_s` at most."""
        until = time.monotonic() + self.timeouts.join_s
        while any(member.line is None for member in self.all):
            if self.next(until) is None:
                return

    def begin(self) -> None:
        """Starts a round."""
        self._began, self._times = time.monotonic(), []
        for member in self.all:
            member.backoff_rounds = max(0, member.backoff_rounds - 1)

    def reported(self, member: Member) -> None:
        """Notes that the report of a process has arrived in this round."""
        member.gone, member.missed, member.backoff_rounds = "", 0, 0
        self._times.append(time.monotonic() - self._began)

    def ended(self) -> None:
        """Notes that the reports of a round are in."""
        self._first = False

    def late(self, member: Member) -> None:
        """Notes that nothing has come from a process in time."""
        member.missed += 1
        member.backoff_rounds = backoff(member.missed)
        if not member.gone:
            member.gone = f"no answer within {time.monotonic() - self._began:.1f} s"

    @property
    def deadline(self) -> float:
        """The time until which this round waits for reports."""
        awaited = sum(member.awaited for member in self.all)
        return self._began + self.timeouts.round_s(self._times, awaited, self._first)

    @property
    def answer_deadline(self) -> float:
        """The time until which a request that is sent now waits for its answer."""
        now = time.monotonic()
        return now + (self.timeouts.first_s if self._first else self.timeouts.stretched(now - self._began))

    def next(self, until: float) -> tuple[Member, Message | None] | None:
        """The next message, or the end of a connection (None in its place); None when the time is over.

        Adds processes that connect meanwhile.
        """
        while True:
            left = until - time.monotonic()
            try:
                # late by a moment of this process, not of the worker
                line, event = self._events.get(timeout=max(left, 0.001)) if left > -1 else self._events.get_nowait()
            except queue.Empty:
                return None
            if isinstance(event, dict):
                member = self._add_connection(line, event)
            elif line not in self._at:
                continue
            elif event is None:
                member = self._at.pop(line)
                self._past_bytes += line.received_bytes
                member.line, member.gone = None, line.why_ended
            else:
                line.taken()
                return self._at[line], event
            if member is not None:
                return member, None

    def _add_connection(self, line: Connection, about: dict[str, Any]) -> Member | None:
        """Gives a connection to its process, unless that has one already."""
        member = self.all[about["process"]]
        if member.line is not None:
            line.close()
            return None
        member.line, member.gone, member.about, member.knows_run = line, "nothing arrived", about, False
        member.missed = member.backoff_rounds = 0
        self._at[line] = member
        line.start()
        return member

    def close(self) -> None:
        """Ends the run for every process."""
        self._listener.close()
        for member in self.all:
            if member.line is not None:
                member.line.send(message(Kind.END))
        for member in self.all:
            if member.line is not None:
                member.line.close(linger_s=0.0 if member.backoff_rounds else 2.0)

    def _admit(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            # each in a thread of its own: a stranger that sends nothing delays nobody
            threading.Thread(target=self._greet, args=(link,), daemon=True).start()

    def _greet(self, link: socket.socket) -> None:
        try:
            link.settimeout(_HELLO_S)
            about = json.loads(bytes(read(link, _HELLO_BYTES).body.tolist()))
            known = secrets.compare_digest(about["token"], self.token) and about["process"] in range(len(self.all))
            require(known, "an unknown process")
        except (BadPayload, OSError, EOFError, ValueError, KeyError, TypeError):
            with suppress(OSError):
                link.close()
            return
        line = Connection(link, lambda line, event: self._events.put((line, event)), self._limit)
        self._events.put((line, {key: about[key] for key in ("process", "host", "pid") if key in about}))

# SPDX-License-Identifier: Apache-2.0
"""The worker processes of a server: which are connected, which a round waits for, and how long."""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from phalanx.core.expression import require
from phalanx.core.packing import Unpacker
from phalanx.distributed.server.identity import Keys
from phalanx.distributed.server.messages import Kind, message
from phalanx.distributed.server.stream import Arriving, Line, StreamServer

_MAX_BACKOFF = 64  # rounds
_GRACE_S = 1.0  # that a round looks at what has arrived beyond its deadline
_LINGER_S = 2.0  # for the end of a run to reach the workers


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
    line: Line | None = None
    gone: str = "never connected"
    missed: int = 0
    backoff_rounds: int = 0
    knows_run: bool = False

    @property
    def awaited(self) -> bool:
        """Whether a round waits for it: it is connected since the round's beginning, and was not late too often."""
        return self.line is not None and self.knows_run and not self.backoff_rounds


class Membership:
    """All worker processes of a run, and what arrives from them.

    Streams are read, written and unpacked in other threads than the caller's.

    Args:
        shares: workers of each process.
        limit_bytes: gives the largest answer of a kind to accept from a process.
        arriving: gives what unpacks an answer that begins to arrive, in another thread.
        arrived: turns an answer that has arrived into what `next` returns, in the same.
        host: address to listen at.
        secrets: what each process proves who it is with, where there are no keys.
        keys: of the server, for TLS.
    """

    def __init__(
        self,
        shares: Sequence[tuple[int, ...]],
        timeouts: Timeouts,
        limit_bytes: Callable[[int, Kind], int],
        arriving: Arriving,
        arrived: Callable[[Member, Kind, int, Unpacker], Any],
        host: str,
        secrets: Sequence[str],
        keys: Keys | None = None,
    ) -> None:
        self.all = [Member(share) for share in shares]
        self.timeouts = timeouts
        self._of = {worker: member for member in self.all for worker in member.workers}
        self._at: dict[Line, Member] = {}
        self._past_bytes = 0
        self._began, self._times, self._first = time.monotonic(), dict[int, float](), True
        self._streams = StreamServer(
            host,
            secrets,
            keys,
            limit_bytes,
            arriving,
            lambda process, kind, round, content: arrived(self.all[process], kind, round, content),
        )

    def of(self, worker: int) -> Member:
        """The process that computes a worker."""
        return self._of[worker]

    @property
    def port(self) -> int:
        """The port that workers connect to."""
        return self._streams.port

    @property
    def received_bytes(self) -> int:
        """Bytes of messages that arrived so far."""
        return self._past_bytes + sum(member.line.received_bytes for member in self.all if member.line is not None)

    @property
    def gone(self) -> list[int]:
        """The workers that are not connected, or of which nothing came in the last round that waited for them."""
        return [w for member in self.all if member.line is None or member.missed for w in member.workers]

    def join(self) -> None:
        """Waits until every process has connected, `join_s` at most."""
        until = time.monotonic() + self.timeouts.join_s
        while any(member.line is None for member in self.all):
            if self.next(until) is None:
                return

    def begin(self) -> None:
        """Starts a round."""
        self._began, self._times = time.monotonic(), {}
        for member in self.all:
            member.backoff_rounds = max(0, member.backoff_rounds - 1)

    def reported(self, member: Member) -> None:
        """Notes that the report of a process has arrived in this round; a second one counts no more than the first."""
        member.gone, member.missed, member.backoff_rounds = "", 0, 0
        self._times.setdefault(member.workers[0], time.monotonic() - self._began)

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
        return self._began + self.timeouts.round_s(list(self._times.values()), awaited, self._first)

    @property
    def answer_deadline(self) -> float:
        """The time until which a request that is sent now waits for its answer."""
        now = time.monotonic()
        return now + (self.timeouts.first_s if self._first else self.timeouts.stretched(now - self._began))

    def next(self, until: float) -> tuple[Member, Any] | None:
        """What `arrived` made of the next answer, or None in its place for a stream that has begun or ended.

        None alone when the time is over, however much still waits to be looked at. Adds processes that connect.
        """
        while (left := until - time.monotonic()) > -_GRACE_S:
            try:
                # late by a moment of this process, not of the worker
                line, event = self._streams.events.get(timeout=max(left, 0.001))
            except queue.Empty:
                return None
            if isinstance(event, dict):
                return self._connected(line, event), None
            member = self._at.get(line)
            if member is None:
                continue
            if event is not None:
                return member, event
            del self._at[line]
            self._past_bytes += line.received_bytes
            if member.line is line:
                member.line, member.gone = None, line.why_ended
                return member, None
        return None

    def _connected(self, line: Line, about: dict[str, Any]) -> Member:
        """Gives a stream to its process, which has proved who it is."""
        member = self.all[about["process"]]
        member.line, member.gone, member.about, member.knows_run = line, "", about, False
        member.missed = member.backoff_rounds = 0
        self._at[line] = member
        return member

    def close(self) -> None:
        """Ends the run for every process."""
        for member in self.all:
            if member.line is not None:
                member.line.send(message(Kind.END))
                member.line.close()
        hung = all(member.line is None or member.backoff_rounds for member in self.all)
        self._streams.close(0.0 if hung else _LINGER_S)

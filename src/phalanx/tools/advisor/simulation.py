# SPDX-License-Identifier: Apache-2.0
"""A step carried out message by message over simulated lines, to see where the formulas of the cost model hold.

Every host has one line, with a rate each way, to a switch that limits nothing. A line carries what it is given in the
order in which it became ready. A message occupies its sender's line; its first byte reaches the receiver's line a
latency later, waits there for what came before, and takes as long as the slower of the two lines needs. In a ring each
line has one sender and one receiver, so that the order is known; where many send to one, the messages are sorted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phalanx.core.expression import require
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Line, Link, hops
from phalanx.tools.advisor.model import Cost, Message

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

WHOLE, HALVES = 1, 2  # parts in which a message goes around a ring; gloo keeps two in flight
TURNS = 32  # of each of a server's connections on its line while a message goes out or comes in


class Network:
    """Hosts with a line each; it counts the bytes on every line.

    Args:
        ratios: the rate of each host's line, each way, relative to the link's.
        touch_s: seconds of a core that a message takes on its arrival.
        cores: that all hosts share, in turns by number; None for one each.
    Raises:
        ValueError: no host, a rate that is not above zero, a negative time, or no core.
    """

    def __init__(self, ratios: ArrayLike, touch_s: float = 0.0, cores: int | None = None) -> None:
        self.ratios, self._touch_s, self._cores = np.atleast_1d(np.asarray(ratios, dtype=np.float64)), touch_s, cores
        n = self.size = len(self.ratios)
        require(n >= 1 and bool((self.ratios > 0).all()), f"a network needs hosts with rates above zero, got {ratios}")
        require(touch_s >= 0, f"touching a message takes no negative time, got {touch_s} s")
        require(cores is None or cores >= 1, f"hosts share at least one core, got {cores}")
        self._core = np.arange(n) % (cores or n)
        self._up, self._down, self._busy = np.zeros(n), np.zeros(n), np.zeros(n)  # until when each is taken
        self.sent_bytes, self.received_bytes = np.zeros(n), np.zeros(n)

    def afresh(self) -> Network:
        """The same hosts before anything was sent."""
        return Network(self.ratios, self._touch_s, self._cores)

    def carry(self, line: Line, senders: Places, receivers: Places, sizes: Floats, ready: Floats) -> Floats:
        """When messages have arrived that are ready to leave at these times.

        Args:
            line: of a host with a ratio of 1.
        """
        np.add.at(self.sent_bytes, senders, sizes)
        np.add.at(self.received_bytes, receivers, sizes)
        rates = PAYLOAD_RATIO * line.bandwidth * self.ratios
        leaving_s, entering_s = sizes / rates[senders], sizes / rates[receivers]
        first = queued(senders, ready, leaving_s, self._up) + line.latency_s
        entered = queued(receivers, first, entering_s, self._down)
        arrived = np.maximum(entered + entering_s, first + leaving_s)
        if self._touch_s:
            touches = np.full(len(arrived), self._touch_s)
            arrived = queued(self._core[receivers], arrived, touches, self._busy) + self._touch_s
        return arrived

    def idle_from(self, hosts: Places) -> Floats:
        """When all has left that these hosts sent so far."""
        return self._up[hosts]


def queued(places: Places, ready: Floats, spent: Floats, free: Floats) -> Floats:
    """When jobs begin that each place does one after the other, first ready, first served.

    Args:
        spent: seconds of each job.
        free: from when on each place is free; brought up to date.
    """
    if np.bincount(places).max() == 1:
        begun = np.maximum(ready, free[places])
        free[places] = begun + spent
        return begun
    begun = np.empty(len(ready))
    order = np.lexsort((ready, places))
    for jobs in np.split(order, np.flatnonzero(np.diff(places[order])) + 1):
        place = places[jobs[0]]
        before = np.concatenate(([0.0], np.cumsum(spent[jobs])[:-1]))
        begun[jobs] = before + np.maximum(np.maximum.accumulate(ready[jobs] - before), free[place])
        free[place] = begun[jobs[-1]] + spent[jobs[-1]]
    return begun


def ring(network: Network, line: Line, message: Message, size: float, ready: Floats, parts: int) -> Floats:
    """When each of n processes is through an all-gather or an all-reduce that it enters at `ready`.

    Args:
        size: bytes of every process's message.
        parts: into which what a process passes on is cut; a part goes on as soon as it is there.
    """
    n = len(ready)
    hosts = np.arange(n)
    following = np.roll(hosts, -1)
    sizes = np.full(n, (size if message.kind == "gather" else size / n) / parts)
    held = np.tile(ready, (parts, 1))
    for hop in range(hops(message.kind, n)):
        if hop == n - 1:
            # a sum is whole before it goes around
            held[:] = held.max(axis=0)
        for part in range(parts):
            arrived = network.carry(line, hosts, following, sizes, held[part])
            held[part] = np.maximum(ready, np.roll(arrived, 1))
    return np.maximum(held.max(axis=0), network.idle_from(hosts))


def star(network: Network, line: Line, message: Message, sizes: Floats, workers: Places, ready: Floats) -> Floats:
    """When messages between these workers and the server, the last host, have arrived; its connections take turns."""
    server = np.full(len(workers), network.size - 1)
    ends = (server, workers) if message.kind == "spread" else (workers, server)
    senders, receivers = (np.tile(end, TURNS) for end in ends)
    arrived = network.carry(line, senders, receivers, np.tile(sizes / TURNS, TURNS), np.tile(ready, TURNS))
    return arrived.reshape(TURNS, -1).max(axis=0)


@dataclass(frozen=True)
class Simulated:
    """A simulated step.

    Args:
        seconds: until the last process is through.
        sent_bytes, received_bytes: on the line of each host; the last one is the server, if there is one.
    """

    seconds: float
    sent_bytes: Floats
    received_bytes: Floats


def simulate(
    cost: Cost,
    work_s: ArrayLike,
    link: Link,
    n: int,
    network: Network | None = None,
    parts: int = HALVES,
    rng: np.random.Generator | None = None,
) -> Simulated:
    """One step of n workers that begin together.

    Args:
        work_s: of forward and backward, of all workers or of each.
        network: of n hosts, and one more for the server of a scheme that is `served`; one of equal lines if left out.
        parts: of `ring`.
        rng: draws the lengths of gathered and collected messages; without one they have the expected ones.
    Raises:
        ValueError: another number of hosts.
    """
    hosts = n + cost.served
    network = network or Network(np.ones(hosts))
    require(network.size == hosts, f"a step of {n} workers needs {hosts} hosts, got {network.size}")
    effort, calls = cost.at(n), list(cost.calls)
    ready, served_s = np.zeros(n), 0.0
    if cost.served:
        # the model goes out before the work
        first = calls.pop(0)
        ready = star(network, link.line(first.kind), first, _lengths(first, n, rng), np.arange(n), ready)
    ready = ready + np.asarray(work_s) + effort.encode_s + effort.pack_s
    for message in calls:
        line, sizes, asked = link.line(message.kind), _lengths(message, n, rng), np.arange(n // message.r) * message.r
        if message.kind == "collect":
            served_s = float(star(network, line, message, sizes[asked], asked, ready[asked]).max())
        elif message.kind == "spread":
            told = star(network, line, message, sizes[asked], asked, np.full(len(asked), served_s))
            ready[asked] = np.maximum(ready[asked], told)
        else:
            ready = ring(network, line, message, float(sizes.max()), ready, parts)
    last = served_s if cost.served else float(ready.max())
    whole = last + effort.decode_s + effort.rule_s + effort.finish_s
    return Simulated(whole, network.sent_bytes, network.received_bytes)


def _lengths(message: Message, n: int, rng: np.random.Generator | None) -> Floats:
    if rng is None or message.kind in ("reduce", "spread"):
        return np.full(n, message.longest(n))
    return np.maximum(0.0, rng.normal(message.bytes, message.spread, n))


def straggling(work_s: float, ratio: float, n: int, rng: np.random.Generator) -> Floats:
    """Seconds of n workers, normal around `work_s` with this relative standard deviation, and never negative."""
    return np.maximum(0.0, work_s * (1 + ratio * rng.standard_normal(n)))

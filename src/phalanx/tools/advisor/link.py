# SPDX-License-Identifier: Apache-2.0
"""How long messages take: a ring of n processes, or n workers and a server, each with a line of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Literal, Protocol

from phalanx.core.expression import require
from phalanx.distributed.backend import CallKind, Kind

# of a frame of 1538 bytes with its preamble and gap, TCP carries 1448
PAYLOAD_RATIO = 1448 / 1538
_LEAST_SLOWNESS = 1e-13  # seconds a byte; points without a slope are faster than they can tell
LONG_SPAN = 16  # messages of at least this part of the longest show the bandwidth
SHORT = 2  # so many of the shortest show the latency

# collectives of n processes; a message of a server to each of n workers, and one of each of them to it
Traffic = Literal[CallKind, "spread", "collect"]


def hops(kind: Traffic, n: int) -> int:
    """Messages that wait for one another: n - 1 in an all-gather, 2 (n - 1) in an all-reduce, 1 at a server.

    Shares are all-gathered like other messages; those of an all-to-all do not wait, and count as much.
    """
    return {"gather": n - 1, "share": n - 1, "reduce": 2 * (n - 1)}.get(kind, 1)


def volume(kind: Traffic, size: float, n: int) -> float:
    """Bytes that the busiest line carries one way, for messages of `size` bytes.

    A message travels once around the ring in an all-gather: (n - 1) size. In an all-reduce each of n pieces travels
    twice around it: 2 (n - 1) / n size. Of shares, which are n pieces of `size` bytes in all, each line carries
    (n - 1) / n size. All n messages pass the line of a server: n size.
    """
    if kind in ("reduce", "share"):
        return hops(kind, n) * size / n
    return (hops(kind, n) if kind == "gather" else n) * size


class Link(Protocol):
    """What joins n processes."""

    def seconds(self, kind: Traffic, size: float, n: int) -> float:
        """Duration of a collective of messages of `size` bytes over n processes, or of those of n workers."""
        ...

    def line(self, kind: Traffic) -> Line:
        """The latency and bandwidth behind it."""
        ...


@dataclass(frozen=True)
class Line:
    """A link of which latency and bandwidth are known: hops latency + volume / payload bandwidth.

    Args:
        latency_s: of one message, from process to process.
        bandwidth: bytes per second on the line; TCP carries `PAYLOAD_RATIO` of them.
    Raises:
        ValueError: a negative latency, or no bandwidth.
    """

    latency_s: float
    bandwidth: float

    def __post_init__(self) -> None:
        require(self.latency_s >= 0, f"a latency is not negative, got {self.latency_s} s")
        require(self.bandwidth > 0, f"a bandwidth is above zero, got {self.bandwidth} bytes/s")

    def seconds(self, kind: Traffic, size: float, n: int) -> float:
        return hops(kind, n) * self.latency_s + volume(kind, size, n) / (PAYLOAD_RATIO * self.bandwidth)

    def line(self, kind: Traffic) -> Line:
        return self

    @property
    def has_slope(self) -> bool:
        """Whether longer messages took longer; if not, the bandwidth is only known to be above what they show."""
        return self.bandwidth * PAYLOAD_RATIO * _LEAST_SLOWNESS < 0.99

    def delivered(self, size: float, trips: int = 1) -> float:
        """Until `size` bytes have come in over the line of a server: trips latency + size / payload bandwidth.

        Args:
            trips: messages that wait for one another, either way.
        """
        return trips * self.latency_s + size / (PAYLOAD_RATIO * self.bandwidth)


Points = tuple[tuple[int, float], ...]  # (bytes, seconds), ascending in bytes


@dataclass(frozen=True)
class MeasuredLink:
    """A link of which curves were measured: interpolated for that many processes, a fitted `Line` for others.

    What goes to a server or comes from it is taken to meet the line of the longer curve, which shows the bandwidth.

    Args:
        processes: that took part.
        curves: points of each collective.
    """

    processes: int
    curves: Mapping[Kind, Points]
    lines: Mapping[Kind, Line] = field(init=False)

    def __post_init__(self) -> None:
        require(self.processes >= 2, f"a link joins at least 2 processes, got {self.processes}")
        for kind in ("gather", "reduce"):
            require(len(self.curves.get(kind, ())) >= 2, f"the curve of {kind} needs at least 2 points")
        fitted = {kind: fit(kind, points, self.processes) for kind, points in self.curves.items()}
        object.__setattr__(self, "lines", fitted)

    def seconds(self, kind: Traffic, size: float, n: int) -> float:
        if kind == "share":
            return self.seconds("gather", size / n, n)
        if kind in ("gather", "reduce") and n == self.processes:
            return between(self.curves[kind], size)
        return self.line(kind).seconds(kind, size, n)

    def line(self, kind: Traffic) -> Line:
        longer: Kind = max(self.curves, key=lambda kind: self.curves[kind][-1][0])
        kind = "gather" if kind == "share" else kind
        return self.lines[kind if kind in ("gather", "reduce") else longer]


def fit(kind: Kind, points: Sequence[tuple[int, float]], n: int) -> Line:
    """The line through measured (bytes, seconds): bandwidth of the long messages, latency of the short ones.

    One least-squares line would not do: what limits a link, such as a token bucket, often lets a short burst pass.
    """
    import numpy as np
    from scipy.optimize import nnls

    long = [p for p in points if p[0] >= points[-1][0] / LONG_SPAN]
    long = long if len(long) > 1 else points[-2:]
    # relative errors; columns of equal size, as their units have nothing to do with each other
    table = np.array([[1 / s, volume(kind, size, n) / s] for size, s in long])
    scale = np.linalg.norm(table, axis=0)
    (_, slowness), _ = nnls(table / scale, np.ones(len(long)))
    slowness = max(float(slowness / scale[1]), _LEAST_SLOWNESS)
    short = [(s - slowness * volume(kind, size, n)) / hops(kind, n) for size, s in points[:SHORT]]
    return Line(max(0.0, median(short)), 1 / (slowness * PAYLOAD_RATIO))


def between(points: Sequence[tuple[int, float]], size: float) -> float:
    """A curve at `size` bytes: straight between its points, level below the first, on as it ended above the last."""
    first, last = points[0], points[-1]
    if size <= first[0]:
        return first[1]
    if size >= last[0]:
        (a, s), (b, t) = points[-2:]
        return t + max(0.0, (t - s) / (b - a)) * (size - b)
    (a, s), (b, t) = next(pair for pair in pairwise(points) if size <= pair[1][0])
    return s + (t - s) * (size - a) / (b - a)

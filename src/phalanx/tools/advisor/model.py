# SPDX-License-Identifier: Apache-2.0
"""The seconds of a step from what its parts were measured to take, and the bandwidth at which two schemes are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from phalanx.core.expression import require
from phalanx.tools.advisor.link import PAYLOAD_RATIO, Link, Traffic, hops, volume

CONTROL_BYTES = 16  # the loss and the wish to stop that the processes exchange in every round


@dataclass(frozen=True)
class Message:
    """A collective that a scheme calls in every step, or messages between a server and its workers.

    Args:
        bytes: of one process's message, on average.
        spread: standard deviation of these bytes between processes and steps.
        r: workers in a group of which one sends, or is sent, a message; 1 for all workers, and in collectives.
    """

    kind: Traffic
    bytes: float
    spread: float = 0.0
    r: int = 1

    def seconds(self, link: Link, n: int) -> float:
        """Among n workers."""
        return link.seconds(self.kind, self.longest(n), n // self.r)

    def volume(self, n: int) -> float:
        """Bytes that the busiest line carries one way among n workers."""
        return volume(self.kind, self.longest(n), n // self.r)

    def longest(self, n: int) -> float:
        """Expected length of the longest of n messages, to which an all-gather pads the others; else the mean.

        Source: Blom, Statistical Estimates and Transformed Beta-Variables, 1958, for normal lengths.
        """
        if self.kind != "gather" or n == 1 or self.spread == 0:
            return self.bytes
        return self.bytes + self.spread * NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


@dataclass(frozen=True)
class Effort:
    """Seconds that a process computes in a step among n workers, all of them at once.

    Args:
        encode_s: from the row to the payload.
        pack_s: of the wire stage, besides the collectives: packing, padding, unpacking.
        decode_s: of all n payloads.
        rule_s: the rest of the scheme: momentum, gate, aggregation.
        finish_s: accusations and the optimizer's step.
    """

    workers: int
    encode_s: float
    pack_s: float
    decode_s: float
    rule_s: float
    finish_s: float


@dataclass(frozen=True)
class Cost:
    """What a scheme costs, whatever the link.

    Args:
        scheme: its expression.
        quality: "unbiased", "biased", or "error feedback", of a mean of rows; see `quality.quality`.
        sent_bytes: that the payload of one worker takes in a step, as the meter counts.
        messages: in the order of their calls.
        efforts: at one or more numbers of workers, ascending.
    """

    scheme: str
    quality: str
    sent_bytes: float
    messages: tuple[Message, ...]
    efforts: tuple[Effort, ...]

    @property
    def calls(self) -> tuple[Message, ...]:
        """All messages of a step: a server is told losses with the payloads, processes gather them first."""
        return self.messages if self.served else (Message("gather", CONTROL_BYTES), *self.messages)

    @property
    def served(self) -> bool:
        """Whether a server takes the payloads."""
        return any(message.kind == "collect" for message in self.messages)

    def at(self, n: int) -> Effort:
        """Effort among n workers: encoding as measured, the rest on a straight line that does not fall with n."""
        known = next((e for e in self.efforts if e.workers == n), None)
        if known is not None:
            return known
        encode_s = sum(e.encode_s for e in self.efforts) / len(self.efforts)
        parts = ("pack_s", "decode_s", "rule_s", "finish_s")
        return Effort(n, encode_s, *(self._line([getattr(e, part) for e in self.efforts], n) for part in parts))

    def _line(self, seconds: Sequence[float], n: int) -> float:
        if len(seconds) == 1:
            return seconds[0]
        places = [e.workers for e in self.efforts]
        middle, level = sum(places) / len(places), sum(seconds) / len(seconds)
        rise = sum((a - middle) * (s - level) for a, s in zip(places, seconds, strict=True))
        slope = max(0.0, rise / sum((a - middle) ** 2 for a in places))
        return max(0.0, level + slope * (n - middle))


@dataclass(frozen=True)
class Step:
    """Predicted seconds of a step, part by part, as the training loop names them."""

    work_s: float
    encode_s: float
    wire_s: float
    decode_s: float
    rule_s: float
    finish_s: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(vars(self).values())


def predict(cost: Cost, work_s: float, link: Link, n: int) -> Step:
    """A step of n workers, one a process; nothing overlaps, and every part waits for the slowest process.

    Args:
        work_s: seconds of forward and backward on one worker's share of the batch.
    """
    effort = cost.at(n)
    wire_s = [message.seconds(link, n) for message in cost.calls]
    # processes wait for the slowest one's work in the exchange of the losses
    waited_s = 0.0 if cost.served else wire_s.pop(0)
    return Step(
        work_s=work_s + waited_s,
        encode_s=effort.encode_s,
        wire_s=effort.pack_s + sum(wire_s),
        decode_s=effort.decode_s,
        rule_s=effort.rule_s,
        finish_s=effort.finish_s,
    )


@dataclass(frozen=True)
class BreakEven:
    """Where a scheme makes a step shorter than the uncompressed one.

    Args:
        wins: "below" or "above" the bandwidth, "always", or "never".
        bandwidth: bytes per second on the line; None for always and never.
    """

    wins: Literal["below", "above", "always", "never"]
    bandwidth: float | None = None


def break_even(cost: Cost, plain: Cost, work_s: tuple[float, float], link: Link, n: int) -> BreakEven:
    """The bandwidth at which the step of a scheme takes as long as the uncompressed one, at the link's latency.

    A step takes c + v / bandwidth, with v the bytes that a process sends, so there is at most one.

    Args:
        work_s: of the scheme and of the uncompressed one.
    """
    fixed, sent = _affine(cost, work_s[0], link, n)
    plain_fixed, plain_sent = _affine(plain, work_s[1], link, n)
    saved, paid = plain_sent - sent, fixed - plain_fixed
    if saved >= 0 >= paid:
        return BreakEven("always" if saved > 0 or paid < 0 else "never")
    if saved <= 0 <= paid:
        return BreakEven("never")
    return BreakEven("below" if saved > 0 else "above", saved / paid / PAYLOAD_RATIO)


def _affine(cost: Cost, work_s: float, link: Link, n: int) -> tuple[float, float]:
    """Seconds of a step at no bandwidth limit, and bytes that a process sends in it."""
    effort = cost.at(n)
    computed = effort.encode_s + effort.pack_s + effort.decode_s + effort.rule_s + effort.finish_s
    waited = sum(hops(m.kind, n) * link.line(m.kind).latency_s for m in cost.calls)
    return work_s + computed + waited, sum(message.volume(n) for message in cost.calls)


def check_workers(n: int) -> None:
    """Raises ValueError for a number of workers between which nothing travels."""
    require(n >= 2, f"a step of one worker sends nothing; give --workers of at least 2, got {n}")

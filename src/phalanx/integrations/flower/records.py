# SPDX-License-Identifier: Apache-2.0
"""Payloads in Flower's records, and what a reply brings, however it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from phalanx.core.codec import WEIGHT
from phalanx.core.packing import pack, unpack
from phalanx.core.parser import parse
from phalanx.core.payload import BadPayload, Payload
from phalanx.training.phase import Run

ORDER, SHARED, OWN = "order", "shared", "own"  # a record to clients, and its arrays: the same for all, and one's own
ABOUT, ROUND, RUN = "about", "round", "run"  # another, and its entries
TESTED = "tested"  # a record of a reply, with what a client measured on test examples of its own
MEMORY = "memory"  # a record to or from a client, after a resume or before a checkpoint
REPORT, PACKED, METRICS = "report", "packed", "metrics"  # records of a reply, and the array in the first
EXAMPLES, LOSS, REMEMBERS, WORKER = "num-examples", "loss", "remembers", "partition-id"  # entries of the last
TEXT = 300  # characters of a client's words that are kept

RunSource = Run | str | Callable[[Mapping[str, Any]], Run] | None


def run_of(source: RunSource, config: Mapping[str, Any]) -> Run:
    """The run that an app was given: itself, its expression, a function of the run config, or that config's "run".

    Raises:
        ValueError: it is none of these.
    """
    if source is None and RUN not in config:
        raise ValueError(
            'an app without a run reads the expression under "run" of [tool.flwr.app.config]; write it there'
        )
    found = source(config) if callable(source) else str(config[RUN]) if source is None else source
    run = parse(found) if isinstance(found, str) else found
    if not isinstance(run, Run):
        raise ValueError(f"an app needs a run(...), got {run!r}")
    return run


def array(payload: Payload) -> Array:
    """A payload as an array of bytes."""
    return array_of_bytes(pack(payload))


def array_of_bytes(packed: Tensor) -> Array:
    """Bytes as they are: Flower looks at neither dtype nor shape of what it carries."""
    return Array("uint8", (packed.numel(),), "phalanx", packed.numpy().tobytes())


def carried(content: RecordDict, record: str, key: str = PACKED) -> Payload:
    """The payload in an array of a message or a state.

    Raises:
        BadPayload: there is none.
    """
    found = content.get(record)
    if not isinstance(found, ArrayRecord) or key not in found:
        raise BadPayload(f"no array {key!r} in a record {record!r}")
    return payload_of(found[key].data)


def payload_of(data: bytes) -> Payload:
    """The payload in the bytes of an array.

    Raises:
        BadPayload: they are none.
    """
    if not data:
        raise BadPayload("no bytes at all")
    return unpack(torch.frombuffer(bytearray(data), dtype=torch.uint8))


@dataclass(frozen=True)
class Report:
    """What a client sent.

    Args:
        packed: its payload, not looked at yet.
        examples: the metric "num-examples".
        loss: NaN when it says none.
        remembers: whether it has memories that a checkpoint should hold.
    """

    packed: bytes
    examples: float
    loss: float
    remembers: bool

    def payload(self, limit_bytes: int) -> Payload | BadPayload:
        """The payload with the reported number of examples as its weight, for the gate to judge."""
        if len(self.packed) > limit_bytes:
            return BadPayload(f"{len(self.packed)} bytes, at most {limit_bytes} allowed")
        try:
            payload = payload_of(self.packed)
        except BadPayload as error:
            return error
        if WEIGHT in payload:
            payload[WEIGHT] = torch.tensor([self.examples], dtype=torch.float64)
        return payload


def report_of(message: Message) -> Report | BadPayload:
    """What a reply to a request brings; nothing that a client can write raises."""
    if message.has_error():
        return BadPayload(error_of(message))
    content = message.content
    record, metrics = content.get(REPORT), content.get(METRICS)
    if not isinstance(record, ArrayRecord) or set(record) != {PACKED}:
        have = sorted(record) if isinstance(record, Mapping) else sorted(content)
        return BadPayload(f"a reply of {have} where an array {PACKED!r} in a record {REPORT!r} belongs"[:TEXT])
    if not isinstance(metrics, MetricRecord) or EXAMPLES not in metrics:
        return BadPayload(f"the metric {EXAMPLES!r} is missing")
    examples, loss = number(metrics[EXAMPLES]), number(metrics.get(LOSS))
    return Report(record[PACKED].data, examples, loss, metrics.get(REMEMBERS) == 1)


def number(value: Any) -> float:
    """A metric as a float; NaN for what is not one number."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain else float("nan")


def error_of(message: Message) -> str:
    """The error in a reply, in Flower's words or the client's."""
    error = message.error
    return " ".join(f"Flower's error {error.code}: {error.reason}".split())[:TEXT]

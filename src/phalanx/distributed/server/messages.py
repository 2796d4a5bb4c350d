# SPDX-License-Identifier: Apache-2.0
"""Messages between a server and its workers, and the frames that they travel in.

A message is a header, little-endian: magic ``PHXS``, kind u8, round i64, length of the body u64; then the body, which
`pack` wrote. The header is a frame of its own, and the body comes in frames of at most 1 MiB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.packing import pack, unpack
from phalanx.core.payload import BadPayload, Payload

_HEADER = struct.Struct("<4sBqQ")
_MAGIC = b"PHXS"
HEADER_BYTES = _HEADER.size
FRAME_BYTES = 1 << 20  # longer ones are much slower
SERVICE, METHOD = "phalanx.Server", "Work"


class Kind(IntEnum):
    """The kind of a message."""

    HELLO = 0  # worker: who it is
    SETUP = 1  # server: the run, and the worker's memories
    ORDER = 2  # server: the model of a round
    REPORT = 3  # worker: numbers and first payloads of its rows
    ASK = 4  # server: send the held payload of a worker
    HELD = 5  # worker: here it is
    RECALL = 6  # server: send your memories
    MEMORY = 7  # worker: here they are
    TEST = 9  # server: test this model on examples of your own
    TESTED = 10  # worker: what it measured
    END = 8  # server: the run is over


ANSWERS = {Kind.ORDER: Kind.REPORT, Kind.ASK: Kind.HELD, Kind.RECALL: Kind.MEMORY, Kind.TEST: Kind.TESTED}


@dataclass(frozen=True, eq=False)
class Message:
    """One message.

    Args:
        body: packed bytes, not unpacked yet.
    """

    kind: Kind
    round: int
    body: Tensor

    def payload(self) -> Payload:
        """The body as tensors.

        Raises:
            BadPayload: it is not what `pack` writes.
        """
        return unpack(self.body)

    def frames(self) -> Iterator[bytes]:
        """The message in pieces, each made when it is asked for."""
        yield _HEADER.pack(_MAGIC, self.kind, self.round, len(self.body))
        view = memoryview(self.body.numpy())  # type: ignore[arg-type]  # a buffer, which numpy's types say later
        for start in range(0, len(view), FRAME_BYTES):
            yield bytes(view[start : start + FRAME_BYTES])


def message(kind: Kind, round: int = 0, payload: Payload | None = None) -> Message:
    """A message with a payload as its body."""
    return Message(kind, round, pack(payload or {}))


class Sink(Protocol):
    """Takes the body of a message while it arrives."""

    def add(self, piece: np.ndarray[Any, Any], /) -> None:
        """Takes the next bytes (uint8)."""
        ...


class Collected:
    """A body kept as one piece of memory.

    Args:
        length: bytes of the body.
    """

    def __init__(self, length: int) -> None:
        # pages that take memory as they are filled only
        self.body = torch.empty(length, dtype=torch.uint8)
        self._filled = 0

    def add(self, piece: np.ndarray[Any, Any]) -> None:
        self.body.numpy()[self._filled : self._filled + len(piece)] = piece
        self._filled += len(piece)


SinkT = TypeVar("SinkT", bound=Sink)


class Assembly(Generic[SinkT]):
    """Puts the frames of one sender together.

    Args:
        admit: called with kind, round and length of each message before memory is taken for it. It returns what takes
            the body, or None for a body that is not wanted, and raises BadPayload for a message that must not come.
    """

    def __init__(self, admit: Callable[[Kind, int, int], SinkT | None]) -> None:
        self._admit = admit
        self._head: tuple[Kind, int] | None = None
        self._sink: SinkT | None = None
        self._left = 0

    def add(self, frame: bytes) -> tuple[Kind, int, SinkT] | None:
        """Kind, round and content of the message that a frame completes, if it is wanted.

        Raises:
            BadPayload: the frame is no part of a message that was admitted.
        """
        if self._head is None:
            return self._begin(frame)
        if not 0 < len(frame) <= self._left:
            raise BadPayload(f"a frame of {len(frame)} bytes where {self._left} are left")
        self._left -= len(frame)
        if self._sink is not None:
            self._sink.add(np.frombuffer(frame, dtype=np.uint8))
        return None if self._left else self._end()

    def _begin(self, frame: bytes) -> tuple[Kind, int, SinkT] | None:
        if len(frame) != HEADER_BYTES:
            raise BadPayload("bytes that are no message")
        magic, kind, round, length = _HEADER.unpack(frame)
        if magic != _MAGIC or kind not in Kind.__members__.values():
            raise BadPayload("bytes that are no message")
        self._sink = self._admit(Kind(kind), round, length)
        self._head, self._left = (Kind(kind), round), length
        return None if length else self._end()

    def _end(self) -> tuple[Kind, int, SinkT] | None:
        assert self._head is not None
        (kind, round), sink = self._head, self._sink
        self._head = self._sink = None
        return None if sink is None else (kind, round, sink)

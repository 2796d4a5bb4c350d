# SPDX-License-Identifier: Apache-2.0
"""Messages between a server and its workers, over one TCP connection each.

A message is a header, little-endian: magic ``PHXS``, kind u8, round i64, length of the body u64; then the body, which
`pack` wrote. Each connection has a thread that reads and one that writes, so that a peer that is dead, stopped or
slow holds up nobody else: with gloo one wait that runs out of time would close the connections to all.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from phalanx.core.packing import pack, unpack
from phalanx.core.payload import BadPayload, Payload

_HEADER = struct.Struct("<4sBqQ")
_MAGIC = b"PHXS"
HEADER_BYTES = _HEADER.size
BACKLOG = 8  # messages of one peer that wait to be processed; a peer that sends more has to wait


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
    END = 8  # server: the run is over


@dataclass(frozen=True, eq=False)
class Message:
    """One message.

    Args:
        body: packed bytes, not unpacked yet.
    """

    kind: Kind
    round: int
    body: Tensor

    def payload(self, room: Callable[[str, int], Tensor] | None = None) -> Payload:
        """The body as tensors.

        Args:
            room: of `unpack`.
        Raises:
            BadPayload: it is not what `pack` writes.
        """
        return unpack(self.body, room)


def message(kind: Kind, round: int = 0, payload: Payload | None = None) -> Message:
    """A message with a payload as its body."""
    return Message(kind, round, pack(payload or {}))


class Connection:
    """One end of a connection, with its two threads.

    Args:
        arrived: called by the reading thread with each message, and with None once when the connection has ended.
        limit_bytes: gives the largest body to accept; a longer one ends the connection before it is read.
    """

    def __init__(
        self, link: socket.socket, arrived: Callable[[Connection, Message | None], None], limit_bytes: Callable[[], int]
    ) -> None:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.settimeout(None)
        self._link, self._arrived, self._limit = link, arrived, limit_bytes
        self.received_bytes = 0
        self.why_ended = "the connection was lost"
        self._room = threading.Semaphore(BACKLOG)
        self._out: deque[Message] = deque()
        self._more = threading.Condition()
        self._closed = False
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> None:
        """Begins to read and write."""
        self._reader.start()
        self._writer.start()

    def send(self, outgoing: Message) -> None:
        """Queues a message; an order replaces one that the peer has not taken yet."""
        with self._more:
            if outgoing.kind == Kind.ORDER:
                self._out = deque(m for m in self._out if m.kind != Kind.ORDER)
            self._out.append(outgoing)
            self._more.notify()

    def taken(self) -> None:
        """Notes that a message that arrived has been processed."""
        self._room.release()

    def close(self, linger_s: float = 0.0) -> None:
        """Ends the connection, after what is queued has left or `linger_s` is over."""
        with self._more:
            if linger_s:
                self._more.wait_for(lambda: not self._out or self._closed, linger_s)
            self._closed = True
            self._more.notify_all()
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def _write(self) -> None:
        while True:
            with self._more:
                self._more.wait_for(lambda: self._out or self._closed)
                if self._closed:
                    return
                outgoing = self._out[0]
            try:
                write(self._link, outgoing)
            except OSError:
                # the reader sees the end as well, and tells
                with suppress(OSError):
                    self._link.shutdown(socket.SHUT_RDWR)
                return
            with self._more:
                # an order may have been replaced while it left
                with suppress(ValueError):
                    self._out.remove(outgoing)
                self._more.notify_all()

    def _read(self) -> None:
        try:
            while True:
                incoming = read(self._link, self._limit())
                self.received_bytes += HEADER_BYTES + len(incoming.body)
                self._room.acquire()
                self._arrived(self, incoming)
        except BadPayload as error:
            self.why_ended = str(error)
        except (OSError, EOFError):
            pass
        finally:
            self._arrived(self, None)
            self.close()


def write(link: socket.socket, outgoing: Message) -> None:
    """Sends a whole message."""
    link.sendall(_HEADER.pack(_MAGIC, outgoing.kind, outgoing.round, len(outgoing.body)))
    buffer: Any = outgoing.body.numpy()  # a buffer, which numpy's types say from Python 3.12 on
    link.sendall(buffer)


def read(link: socket.socket, limit_bytes: int) -> Message:
    """The next message.

    Raises:
        BadPayload: not a message, or a longer one than allowed.
        EOFError: the connection ended.
    """
    head = bytearray(HEADER_BYTES)
    _fill(link, memoryview(head))
    magic, kind, round, length = _HEADER.unpack(head)
    if magic != _MAGIC or kind not in Kind.__members__.values():
        raise BadPayload("bytes that are no message")
    if length > limit_bytes:
        raise BadPayload(f"a message of {length} bytes, at most {limit_bytes} allowed")
    # zero pages, which take memory as they are filled only
    body = bytearray(length)
    _fill(link, memoryview(body))
    return Message(Kind(kind), round, torch.frombuffer(body, dtype=torch.uint8) if length else torch.empty(0).byte())


def _fill(link: socket.socket, view: memoryview) -> None:
    while len(view):
        count = link.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]

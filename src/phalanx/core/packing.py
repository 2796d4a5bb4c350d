# SPDX-License-Identifier: Apache-2.0
"""Payloads as bytes and back, without pickle.

Layout of a message, little-endian: magic ``PHX1``, number of tensors u16; for each its name (length u16, utf-8), dtype
code u8, number of dimensions u8, dimensions u64 each; then the tensors' bytes, one after the other. Every length in
the header is checked against the message before a byte of the body is read.
"""

from __future__ import annotations

import math
import reprlib
import struct
import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phalanx.core.buffers import empty_rows
from phalanx.core.payload import BadPayload, Payload

MAGIC = b"PHX1"
MOST_NAME = 1000  # bytes of a tensor's name
_PIECE = 1 << 18  # entries that are changed at a time; a megabyte stays in a second-level cache
_DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.uint16,
    torch.uint32,
)
_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_SIZES = tuple(torch.empty(0, dtype=dtype).element_size() for dtype in _DTYPES)


def pack(payload: Payload) -> Tensor:
    """A payload as one uint8 tensor on the CPU.

    Raises:
        ValueError: the format cannot hold a dtype, a name or a number of dimensions.
    """
    return torch.cat([torch.frombuffer(bytearray(_head(payload)), dtype=torch.uint8), *_bodies(payload)])


def digest(payload: Payload, read: Callable[[Tensor], Tensor] | None = None) -> bytes:
    """The BLAKE3 digest (32 bytes) of what `pack` writes: equal only for equal payloads in the same order.

    Args:
        read: changes entries before they are hashed, one by one; called with pieces of each tensor as a vector.
    """
    from blake3 import blake3

    hasher = blake3(_head(payload))
    if read is None:
        pieces = iter(_bodies(payload))
    else:
        flats = (tensor.detach().to("cpu").reshape(-1) for tensor in payload.values() if tensor.numel())
        pieces = (read(piece).contiguous().view(torch.uint8) for flat in flats for piece in flat.split(_PIECE))
    for piece in pieces:
        buffer: Any = piece.numpy()  # numpy's types say from Python 3.12 on that this is a buffer
        hasher.update(buffer)
    return hasher.digest()


def _head(payload: Payload) -> bytes:
    header = [MAGIC, struct.pack("<H", len(payload))]
    for name, tensor in payload.items():
        raw = name.encode()
        if tensor.dtype not in _CODES or len(raw) > MOST_NAME or tensor.dim() > 255:
            raise ValueError(
                f"the wire has no place for {reprlib.repr(name)}, {tensor.dtype}, {tensor.dim()} dimensions"
            )
        header.append(struct.pack("<H", len(raw)) + raw)
        header.append(struct.pack(f"<BB{tensor.dim()}Q", _CODES[tensor.dtype], tensor.dim(), *tensor.shape))
    return b"".join(header)


def _bodies(payload: Payload) -> list[Tensor]:
    flats = [tensor.detach().to("cpu").contiguous().reshape(-1) for tensor in payload.values()]
    return [flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8) for flat in flats]


def unpack(message: Tensor, room: Callable[[str, int], Tensor] | None = None) -> Payload:
    """The payload in a uint8 message.

    Args:
        room: gives aligned memory for a tensor, by its name and number of bytes; new memory when None.
    Raises:
        BadPayload: the message is truncated, extended, or otherwise not what `pack` writes.
    """
    unpacker = Unpacker(message.numel(), room)
    unpacker.add(message.cpu().numpy())
    return unpacker.payload


class Unpacker:
    """Unpacks a message while it arrives: each piece goes to where its tensor belongs, and is kept nowhere else.

    Args:
        total: bytes of the message.
        room: of `unpack`.
    """

    def __init__(self, total: int, room: Callable[[str, int], Tensor] | None = None) -> None:
        self._total, self._room, self._offset = total, room, 0
        self._piece = np.empty(0, dtype=np.uint8)
        self._payload: Payload | BadPayload | None = None
        self._reader = self._read()
        self._lock = threading.Lock()
        self._go_on()

    def add(self, piece: np.ndarray[Any, Any]) -> None:
        """Takes the next bytes (uint8); those behind a mistake are ignored."""
        with self._lock:
            self._piece = piece
            self._go_on()

    def drop(self) -> None:
        """Gives up the memory of a message that nobody waits for any more; its payload is a BadPayload."""
        with self._lock:
            if self._payload is None:
                self._payload = BadPayload("a message that nobody waits for any more")
                self._reader.close()

    @property
    def payload(self) -> Payload:
        """The tensors, once all bytes have come.

        Raises:
            BadPayload: the message is truncated, extended, or otherwise not what `pack` writes.
        """
        found = self._payload
        if isinstance(found, dict):
            return found
        raise found or BadPayload("a truncated message")

    def _go_on(self) -> None:
        if self._payload is None:
            try:
                next(self._reader)
            except StopIteration as end:
                self._payload = end.value
            except BadPayload as error:
                self._payload = error
        if self._payload is not None:
            self._reader.close()
        # the sender's buffer is not kept
        self._piece = self._piece[:0]

    def _read(self) -> Generator[None, None, Payload]:
        """Reads the whole message, and waits at each yield for the next piece."""
        if (yield from self._take(4)) != MAGIC:
            raise BadPayload("not a phalanx message")
        (count,) = struct.unpack("<H", (yield from self._take(2)))
        forms = []
        for _ in range(count):
            name = yield from self._name()
            code, dims = struct.unpack("<BB", (yield from self._take(2)))
            if code >= len(_DTYPES):
                raise BadPayload(f"unknown dtype code {code}")
            shape = struct.unpack(f"<{dims}Q", (yield from self._take(8 * dims)))
            forms.append((name, code, shape, math.prod(shape) * _SIZES[code]))
        if len({form[0] for form in forms}) != count:
            raise BadPayload("one name twice")
        if self._offset + sum(form[3] for form in forms) != self._total:
            raise BadPayload(f"the header speaks of other than the {self._total} bytes that arrived")
        payload = {}
        for name, code, shape, size in forms:
            # a tensor without entries may still have strides that overflow
            if math.prod(max(dim, 1) for dim in shape) > 2**60:
                raise BadPayload("dimensions beyond 2**60 entries")
            # a slice of the message is not aligned
            body = torch.empty(size, dtype=torch.uint8) if self._room is None else self._room(name, size)
            yield from self._fill(body)
            payload[name] = (body.view(_DTYPES[code]) if size else torch.empty(0, dtype=_DTYPES[code])).reshape(shape)
        return payload

    def _take(self, size: int) -> Generator[None, None, bytes]:
        """The next bytes of the header."""
        if self._offset + size > self._total:
            raise BadPayload("a truncated header")
        taken = bytearray()
        while len(taken) < size:
            if not len(self._piece):
                yield
            taken += self._next(size - len(taken)).tobytes()
        return bytes(taken)

    def _name(self) -> Generator[None, None, str]:
        (length,) = struct.unpack("<H", (yield from self._take(2)))
        if length > MOST_NAME:
            raise BadPayload(f"a name of {length} bytes, at most {MOST_NAME} allowed")
        raw = yield from self._take(length)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise BadPayload("a name that is not utf-8") from None

    def _fill(self, body: Tensor) -> Generator[None, None, None]:
        """Writes the next bytes into a tensor."""
        filled = 0
        while filled < len(body):
            if not len(self._piece):
                yield
            part = self._next(len(body) - filled)
            target = body[filled : filled + len(part)]
            if part.flags.writeable:
                target.copy_(torch.from_numpy(part))
            else:
                target.numpy()[:] = part
            filled += len(part)

    def _next(self, size: int) -> np.ndarray[Any, Any]:
        part, self._piece = self._piece[:size], self._piece[size:]
        self._offset += len(part)
        return part


class ReceiveBuffers:
    """Memory for payloads that arrive; tensors of one name lie one after the other, like the rows of a table.

    Args:
        count: number of payloads.
        most_bytes: size of a valid payload. The tables take at most count * most_bytes bytes; a tensor that does not
            fit gets memory of its own.
    """

    def __init__(self, count: int, most_bytes: int) -> None:
        self._count, self._left_bytes = count, count * most_bytes
        self._tables: dict[str, Tensor] = {}
        self._used: set[tuple[str, int]] = set()

    def buffer_for(self, i: int, name: str, size: int) -> Tensor:
        """Memory of `size` bytes for a tensor of payload i; each place in a table is used once."""
        empty = torch.empty(0, dtype=torch.uint8)
        if name not in self._tables and self._count * size <= self._left_bytes:
            self._tables[name] = empty_rows(self._count, size, empty)
            self._left_bytes -= self._count * size
        table = self._tables.get(name)
        if table is None or table.shape[1] != size or (name, i) in self._used:
            return empty.new_empty(size)
        self._used.add((name, i))
        return table[i]

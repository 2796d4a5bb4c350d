# SPDX-License-Identifier: Apache-2.0
"""Coded tensors as bytes, for files and for transports other than torch.distributed.

Layout, little-endian: magic ``PHXT``, version u8; length u16 and utf-8 of the codec's expression; dtype code u8, number
of dimensions u8, dimensions u64 each; the payload as in `packing`; BLAKE2b of all before, 8 bytes. No pickle. The
digest detects damage. It is no signature: forged bytes still have to pass the checks of the decoder.
"""

from __future__ import annotations

import hashlib
import math
import struct
from functools import partial

import torch
from torch import Tensor

from phalanx.core.codec import BadPayload, Codec
from phalanx.core.expression import require
from phalanx.core.layout import Layout
from phalanx.core.packing import pack, unpack
from phalanx.core.precision import finite
from phalanx.core.round import make_generator

MAGIC = b"PHXT"
VERSION = 1
_DIGEST_BYTES = 8
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAFE_ELEMENTS = 1 << 24  # decoded without a limit from the caller: 64 MB in float32
_LARGE = 1e30  # entries beyond this may overflow in what a codec sends or computes


def to_bytes(codec: Codec, tensor: Tensor, seed: int) -> bytes:
    """Encodes a tensor into bytes that state its codec, dtype and shape.

    Args:
        codec: any codec that keeps no memory between rows.
        tensor: floating point, of any shape.
        seed: seed of the codec's random numbers; estimates that are averaged need different seeds.
    Raises:
        ValueError: the dtype is not floating point, the tensor is sparse or has no values, its entries are so large
            that what the codec sends overflows, or the codec has a memory, such as error_feedback.

    >>> import phalanx as px
    >>> px.decode(px.codecs.sign(), px.encode(px.codecs.sign(), torch.tensor([0.5, -2.0]), seed=0))
    tensor([ 1., -1.])
    """
    require(
        isinstance(codec, Codec) and isinstance(tensor, Tensor),
        f"encode takes a codec and a tensor, got {type(codec).__name__} and {type(tensor).__name__}",
    )
    require(tensor.dtype in _DTYPES, f"encode takes floating-point tensors, got {tensor.dtype}; convert it first")
    require(
        tensor.layout == torch.strided and not tensor.is_meta,
        "encode takes dense tensors with values, got "
        f"{'one without values (meta)' if tensor.is_meta else tensor.layout}; "
        "convert it first, such as by tensor.to_dense()",
    )
    row = tensor.detach().resolve_neg().reshape(-1)
    payload, memory = codec.encode(row, _layout(tensor.shape, tensor.dtype), {}, partial(make_generator, "bytes", seed))
    require(
        not memory, f"{codec!r} remembers what it lost, which a string of bytes cannot; encode with its inner codec"
    )
    largest = float(row.abs().max()) if row.numel() else 0.0
    require(
        # what a scale or a factor does to smaller entries cannot overflow
        not _LARGE < largest < math.inf or finite(codec.decode(payload, _layout(tensor.shape, tensor.dtype))),
        f"{codec!r} cannot code entries up to {largest:.3g}: what it sends for them overflows; divide the tensor first",
    )
    name = repr(codec).encode()
    require(len(name) < 1 << 16, f"the codec's expression has {len(name)} bytes, and at most 65535 fit")
    header = MAGIC + struct.pack("<BH", VERSION, len(name)) + name
    header += struct.pack(f"<BB{tensor.dim()}Q", _DTYPES.index(tensor.dtype), tensor.dim(), *tensor.shape)
    body = header + pack(payload).numpy().tobytes()
    return body + _digest(body)


def from_bytes(codec: Codec, data: bytes, max_elements: int | None = None) -> Tensor:
    """Decodes bytes that `to_bytes` wrote with the same codec; the tensor is on the CPU.

    Args:
        max_elements: the most entries that the tensor may have; None allows 2**24, or 64 for each byte if that is more.
            A few bytes may stand for a large sparse tensor, so this is what bounds the memory.
    Raises:
        BadPayload: the bytes are truncated, extended, damaged, or of another codec or version; or the tensor is larger.
    """
    body = bytes(data[:-_DIGEST_BYTES])
    if not body.startswith(MAGIC):
        raise BadPayload("not a coded tensor of phalanx")
    if _digest(body) != data[-_DIGEST_BYTES:]:
        raise BadPayload(f"{len(data)} bytes that were damaged, cut or lengthened: their digest is wrong")
    shape, dtype, start = _open_header(codec, body)
    limit = max(_SAFE_ELEMENTS, 64 * len(data)) if max_elements is None else max_elements
    if math.prod(max(1, size) for size in shape) > limit:
        raise BadPayload(
            f"a tensor of shape {list(shape)} where at most {limit} entries are allowed; raise max_elements"
        )
    payload = unpack(torch.frombuffer(bytearray(body[start:]), dtype=torch.uint8))
    return codec.decode(payload, _layout(shape, dtype)).reshape(shape)


def _open_header(codec: Codec, body: bytes) -> tuple[torch.Size, torch.dtype, int]:
    """Reads the header: shape, dtype, and where the payload begins."""
    try:
        version, length = struct.unpack_from("<BH", body, len(MAGIC))
        if version != VERSION:
            raise BadPayload(f"version {version} of the format, and this phalanx reads version {VERSION}")
        start = len(MAGIC) + 3
        name = body[start : start + length].decode()
        if name != repr(codec):
            raise BadPayload(f"coded by {name}, not by {codec!r}")
        code, dims = struct.unpack_from("<BB", body, start + length)
        shape = struct.unpack_from(f"<{dims}Q", body, start + length + 2)
    except (struct.error, UnicodeDecodeError):
        raise BadPayload("a truncated or garbled header") from None
    start += length + 2 + 8 * dims
    if code >= len(_DTYPES) or start >= len(body):
        raise BadPayload("an unknown dtype, or nothing behind the header")
    return torch.Size(shape), _DTYPES[code], start


def _layout(shape: torch.Size, dtype: torch.dtype) -> Layout:
    return Layout(("tensor",), (shape,), dtype=dtype)


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()

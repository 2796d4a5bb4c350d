# SPDX-License-Identifier: Apache-2.0
"""The idx format of the MNIST family: magic, big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTES = 0x08


def read_idx(path: Path, num_dims: int) -> Tensor:
    """The uint8 tensor in an idx file, plain or gzip-compressed (by its first bytes, whatever its name).

    Args:
        num_dims: dimensions that the file must have: 3 for images, 1 for labels.
    Raises:
        ValueError: another magic number, another number of dimensions, or more or fewer bytes than the sizes say.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}; delete it and fetch it again") from None
    start = 4 + 4 * num_dims
    if len(data) < start:
        raise ValueError(f"{path} is no idx file: {len(data)} bytes are less than its header of {start}")
    zero, kind, dims = struct.unpack(">HBB", data[:4])
    if zero or kind != UNSIGNED_BYTES:
        raise ValueError(f"{path} is no idx file of bytes: it begins with {data[:4].hex()}, not with 000008")
    if dims != num_dims:
        raise ValueError(f"{path} has {dims} dimensions, and {num_dims} are expected; is it the right file?")
    sizes = struct.unpack(f">{dims}I", data[4:start])
    expected = math.prod(sizes)
    if len(data) - start != expected:
        raise ValueError(
            f"{path} says {' x '.join(map(str, sizes))} = {expected} bytes and holds {len(data) - start}; "
            "delete it and fetch it again"
        )
    body = torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start) if expected else torch.empty(0)
    return body.to(torch.uint8).reshape(sizes)

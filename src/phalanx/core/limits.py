# SPDX-License-Identifier: Apache-2.0
"""Bounds for files and texts that other people wrote: nesting, and how much a compressed stream may hold."""

from __future__ import annotations

import gzip
import io
from typing import IO

from phalanx.core.expression import require

MAX_DEPTH = 50  # brackets within brackets
MAX_RATIO = 1100  # of unpacked to packed bytes; deflate reaches 1032
MAX_TOTAL_BYTES = 1 << 34  # of one file, unpacked
_CHUNK = 1 << 20


def check_depth(text: str, what: str) -> None:
    """Raises ValueError for a text with too many brackets open at once, strings included, before a parser recurses."""
    depth = most = 0
    for character in text:
        if character in "([{":
            depth += 1
            most = max(most, depth)
        elif character in ")]}":
            depth -= 1
    require(most <= MAX_DEPTH, f"{what} is nested {most} deep, and {MAX_DEPTH} is the most")


def gunzip(data: bytes, name: str, most: int = MAX_TOTAL_BYTES) -> bytes:
    """The content of gzip data, of at most `most` bytes.

    Raises:
        ValueError: it is longer.
        OSError, EOFError, zlib.error: it is damaged.
    """
    with gzip.open(io.BytesIO(data)) as source:
        content = source.read(most + 1)
    require(len(content) <= most, f"{name} holds more than {most:,} bytes unpacked")
    return content


def copy_bounded(source: IO[bytes], target: IO[bytes], name: str, packed: int, most: int = MAX_TOTAL_BYTES) -> None:
    """Copies a stream that unpacks as it is read.

    Args:
        packed: bytes of the packed file.
    Raises:
        ValueError: it holds more than `most` bytes, or more than deflate can pack so far.
    """
    copied, limit = 0, min(most, MAX_RATIO * max(packed, 1) + _CHUNK)
    while chunk := source.read(_CHUNK):
        copied += len(chunk)
        require(copied <= limit, f"{name} of {packed:,} bytes unpacks to more than {limit:,}")
        target.write(chunk)

# SPDX-License-Identifier: Apache-2.0
"""Reads the databases in which TensorFlow Federated publishes texts by client."""

from __future__ import annotations

import lzma
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

QUERY = "select client_id, serialized_example_proto from examples where split_name = ? order by rowid"


def examples_by_client(archive: Path, part: str, feature: str) -> dict[str, list[str]]:
    """The texts of each client in one part of a compressed database, in the order of the database.

    Args:
        archive: an lzma file; the database is unpacked next to it, and deleted at the end.
        part: name of the part, such as "train".
        feature: name of the text in each example.
    Raises:
        ValueError: the file is damaged or is no such database.
    """
    unpacked = archive.with_suffix("")
    texts: dict[str, list[str]] = {}
    try:
        unpacked.write_bytes(lzma.decompress(archive.read_bytes()))
        with closing(sqlite3.connect(unpacked)) as database:
            for client, example in database.execute(QUERY, (part,)):
                texts.setdefault(client, []).append(text_of(example, feature))
    except (lzma.LZMAError, sqlite3.Error, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{archive.name} is no database of examples by client ({reason})") from error
    finally:
        unpacked.unlink(missing_ok=True)
    return texts


def text_of(example: bytes, feature: str) -> str:
    """The text under a name in a serialized tf.train.Example.

    Raises:
        ValueError: the bytes are no such message, or the example has no such text.
    """
    # Example.features -> Features.feature, a map of entries (1: name, 2: Feature) -> Feature.bytes_list -> value
    for features in _fields(example, 1):
        for entry in _fields(features, 1):
            if b"".join(_fields(entry, 1)) == feature.encode():
                texts = [t for f in _fields(entry, 2) for values in _fields(f, 1) for t in _fields(values, 1)]
                if len(texts) == 1:
                    return texts[0].decode("utf-8")
    raise ValueError(f"an example has no text {feature!r}")


def _fields(message: bytes, wanted: int) -> Iterator[bytes]:
    """The contents of all fields with one number in a message whose fields all state their length."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        size, at = _number(message, at)
        if key % 8 != 2 or at + size > len(message):
            raise ValueError(f"a message of {len(message)} bytes is cut off or has another kind of field at byte {at}")
        if key // 8 == wanted:
            yield message[at : at + size]
        at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    """A number with seven bits in each byte, the lowest first, and the position after it."""
    value = shift = 0
    while at < len(message):
        byte, at = message[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a message ends within a number")

# SPDX-License-Identifier: Apache-2.0
"""Hostile bytes for every reader: python -m tests.fuzz --messages 1000000 --json fuzz.json

Not a test, because it takes long; `tests/test_fuzz.py` gives some of the same messages to each reader. A message is a
good one that was changed, cut, lengthened or spliced, or random bytes. A reader may refuse it with its own error, and
nothing else: no other exception, at most `LIMIT_S` seconds, and at most twice the size of the message and a slack of
memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import phalanx as px
from phalanx.core.packing import ReceiveBuffers, Unpacker, pack, unpack
from phalanx.core.payload import BadPayload
from phalanx.core.serialization import _DIGEST_BYTES, _digest
from phalanx.core.trees import from_payload, to_payload
from phalanx.distributed.server.messages import Assembly, Kind, Message
from phalanx.distributed.server.transport import NUMBERS, _divided, _room
from phalanx.lowrank.plan import Plan
from phalanx.training.run_folder import Checkpoint, load_checkpoint, save_checkpoint
from tests.examples import examples

LIMIT_S, SLACK_BYTES = 0.1, 4 << 20


@dataclass(frozen=True)
class Reader:
    """Something that reads bytes of others.

    Args:
        good: messages that it reads.
        read: reads one.
        refuses: the errors that it may raise.
    """

    name: str
    good: Sequence[bytes]
    read: Callable[[bytes], Any]
    refuses: tuple[type[Exception], ...] = (ValueError,)


def readers() -> list[Reader]:
    """All readers."""
    return [
        *(_codec(codec) for codec in examples("codec") if "error_feedback" not in repr(codec)),
        Reader(
            "unpack",
            [_bytes(pack(payload)) for payload in _payloads()],
            lambda data: unpack(_tensor(data)),
            (BadPayload,),
        ),
        Reader("frames", [b"".join(_report().frames())], _assemble, (BadPayload,)),
        Reader("report", [_bytes(_report().body)], _report_of, (BadPayload,)),
        Reader(
            "memory",
            [_bytes(pack(to_payload(tree))) for tree in _trees()],
            lambda data: from_payload(unpack(_tensor(data))),
        ),
        Reader("plan", [_plan().encode()], lambda data: Plan.from_yaml(data.decode("utf-8", "replace"))),
        Reader("checkpoint", [_checkpoint()], _load),
        Reader("parser", _expressions(), lambda data: px.parse(data.decode("utf-8", "replace"))),
    ]


def _codec(codec: Any) -> Reader:
    rows = (torch.randn(37), torch.zeros(5), torch.linspace(-1, 1, 300), torch.empty(0))
    return Reader(
        f"decode {codec!r}",
        # without the digest behind them, which would keep a changed message from the codec
        [px.encode(codec, row, seed=i)[:-_DIGEST_BYTES] for i, row in enumerate(rows)],
        lambda data: px.decode(codec, data + _digest(data), max_elements=1 << 16),
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _payloads() -> Iterator[dict[str, torch.Tensor]]:
    yield {}
    yield {"values": torch.randn(50)}
    yield {"a": torch.ones(3, 4, dtype=torch.int16), "b": torch.zeros(0), "c/d": torch.tensor(7)}


def _report() -> Message:
    payload = {
        NUMBERS: torch.zeros(2, 2, dtype=torch.float64),
        "0/values": torch.randn(40),
        "1/values": torch.randn(40),
    }
    return Message(Kind.REPORT, 3, pack(payload))


def _assemble(data: bytes) -> Any:
    """Frames of random lengths, as a hostile sender cuts them."""
    assembly = Assembly(lambda kind, round, length: Unpacker(length) if length < 1 << 20 else None)
    chance, start, whole = random.Random(len(data)), 0, None
    while start < len(data):
        size = chance.choice([21, 21, 1, 100, 1 << 20])
        whole = assembly.add(data[start : start + size])
        start += size
    return None if whole is None else whole[2].payload


def _report_of(data: bytes) -> Any:
    content = Unpacker(len(data), partial(_room, (0, 1), ReceiveBuffers(4, 1000), range(4)))
    chance, start = random.Random(len(data)), 0
    while start < len(data):
        size = chance.choice([1, 7, 100, 1 << 20])
        content.add(np.frombuffer(data[start : start + size], dtype=np.uint8))
        start += size
    return _divided(Kind.REPORT, content, (0, 1))


def _trees() -> Iterator[dict[str, Any]]:
    yield {"stage": {"worker:1": {"residual": torch.randn(9), "count": 3}}}
    yield {"a/b": {"c%": 1.5, "d": None}, "e": [1, [2]]}


def _plan() -> str:
    return px.lowrank.plan(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))).to_yaml()


def _checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "point"
        save_checkpoint(path, Checkpoint(4, "run()", {"model": {"w": torch.randn(20)}, "n": 3}))
        return path.read_bytes()


def _load(data: bytes) -> Any:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return load_checkpoint(Path(file.name))


def _expressions() -> list[bytes]:
    simple = [repr(example).encode() for kind in ("codec", "aggregator", "stage") for example in examples(kind)]
    return [text for text in simple if len(text) < 300]


def changed(good: bytes, other: bytes, chance: random.Random) -> bytes:
    """A hostile message made of good ones."""
    data = bytearray(good)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[place % len(data)] = chance.choice([0, 1, 127, 128, 255])
            case 2:
                del data[place : place + chance.choice([1, 4, 8, 100])]
            case 3:
                data[place:place] = chance.randbytes(chance.choice([1, 4, 8, 64]))
            case 4 if len(data) >= 8:
                size = chance.choice([1, 2, 4, 8])
                value = chance.choice([0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1, chance.getrandbits(64)]) % 2 ** (8 * size)
                start = chance.randrange(len(data) - size + 1)
                data[start : start + size] = value.to_bytes(size, "little")
            case 5:
                data = data[:place] + bytearray(other[place:])
            case 6:
                data[place:] = b""
            case _:
                data += data[: chance.choice([1, 16, len(data)])]
    return bytes(data) if chance.random() > 0.02 else chance.randbytes(chance.randrange(200))


def attack(reader: Reader, count: int, seed: int) -> Iterator[tuple[int, bytes, str]]:
    """What went wrong: the number of the message, the message, and a sentence."""
    chance = random.Random(f"{reader.name} {seed}")
    for number in range(count):
        data = changed(chance.choice(reader.good), chance.choice(reader.good), chance)
        began = time.perf_counter()
        measured = number % 50 == 0
        if measured:
            tracemalloc.start()
        try:
            reader.read(data)
        except reader.refuses:
            pass
        except Exception as error:
            yield number, data, f"raised {type(error).__name__}: {str(error)[:200]}"
        seconds = time.perf_counter() - began
        if measured:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            if most > 2 * len(data) + SLACK_BYTES:
                yield number, data, f"took {most:,} bytes of memory for {len(data):,}"
        elif seconds > LIMIT_S:
            # once more: the machine may have been busy
            began = time.perf_counter()
            with contextlib.suppress(*reader.refuses):
                reader.read(data)
            if time.perf_counter() - began > LIMIT_S:
                yield number, data, f"took {seconds:.2f} s"


def main() -> None:
    """Attacks all readers in turn and prints what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000, help="in all, shared out among the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name begins so")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [reader for reader in readers() if not options.only or reader.name.startswith(options.only)]
    each, wrong, tried = -(-options.messages // len(chosen)), [], {}
    for reader in chosen:
        began = time.monotonic()
        for number, data, sentence in attack(reader, each, options.seed):
            wrong.append({"reader": reader.name, "message": number, "sentence": sentence, "bytes": data[:400].hex()})
            print(f"{reader.name}, message {number}: {sentence}", flush=True)
        tried[reader.name] = each
        print(f"{reader.name}: {each} messages, {time.monotonic() - began:.0f} s", flush=True)
    document = {"seed": options.seed, "messages": sum(tried.values()), "readers": tried, "wrong": wrong}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{sum(tried.values())} messages to {len(tried)} readers, {len(wrong)} went wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()

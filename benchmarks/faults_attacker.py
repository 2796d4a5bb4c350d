# SPDX-License-Identifier: Apache-2.0
"""What strangers, and somebody with the key of one worker, do to a server while it trains; until it is killed.

python benchmarks/faults_attacker.py PROCESS SECRET PORT
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator

import grpc
import torch

from phalanx.distributed.server.messages import METHOD, SERVICE, Kind, Message

process, secret, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chance = random.Random(port)


def drip() -> None:
    """Connections that say a byte now and then."""
    links: list[socket.socket] = []
    while True:
        with contextlib.suppress(OSError):
            link = socket.create_connection(("127.0.0.1", port), timeout=1)
            links.append(link)
        for link in links[-60:]:
            with contextlib.suppress(OSError):
                link.send(b"P")
        for link in links[:-60]:
            link.close()
        links = links[-60:]
        time.sleep(0.05)


def hello(**about: object) -> list[bytes]:
    body = bytearray(json.dumps(about).encode())
    return list(Message(Kind.HELLO, 0, torch.frombuffer(body, dtype=torch.uint8)).frames())


def stream(frames: Iterator[bytes]) -> None:
    """One stream, until the server ends it."""
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")
        with contextlib.suppress(grpc.RpcError):
            for _ in call(frames, timeout=5):
                pass


def strangers() -> Iterator[bytes]:
    """A hello that is none, or of somebody else."""
    nested = Message(Kind.HELLO, 0, torch.frombuffer(bytearray(b'{"a":' * 700), dtype=torch.uint8))
    yield from chance.choice(
        [
            hello(process=chance.randrange(9), secret="guess"),
            hello(process=0.5, secret=secret),
            hello(process=(process + 1) % 9, secret=secret),
            list(nested.frames()),
            [chance.randbytes(21)],
        ]
    )


def flood() -> Iterator[bytes]:
    """With the key of a worker: answers that nobody asked for, and twice."""
    yield from hello(process=process, secret=secret)
    for index in range(1000):
        kind = chance.choice([Kind.REPORT, Kind.HELD, Kind.MEMORY])
        yield from Message(kind, chance.choice([0, index]), torch.zeros(1 << 20, dtype=torch.uint8)).frames()


threading.Thread(target=drip, daemon=True).start()
while True:
    stream(strangers())
    if secret:
        stream(flood())
    time.sleep(0.2)

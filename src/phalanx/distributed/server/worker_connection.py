# SPDX-License-Identifier: Apache-2.0
"""A worker process's end of its stream to the server."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from phalanx.core.payload import BadPayload
from phalanx.distributed.server.identity import SERVER_NAME, Keys
from phalanx.distributed.server.messages import FRAME_BYTES, METHOD, SERVICE, Assembly, Collected, Kind, Message
from phalanx.distributed.server.stream import grpc_module, host_name

_LONGEST = 1 << 40  # a worker trusts its server


class WorkerConnection:
    """The stream of a worker process.

    It is made in the process that uses it: gRPC's threads do not survive a fork.

    Args:
        host: of the server.
        process: number of this process among the server's worker processes.
        secret: proves that on one machine.
        keys: prove it beyond one machine, by TLS.
        wait_s: how long to wait for the connection.
    Raises:
        ConnectionError: nobody answers.
    """

    def __init__(
        self, host: str, port: int, process: int, secret: str = "", keys: Keys | None = None, wait_s: float = 60.0
    ) -> None:
        grpc = grpc_module()
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", FRAME_BYTES + 1024),
            ("grpc.max_send_message_length", FRAME_BYTES + 1024),
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 60_000),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),  # no other stream of this process shares the connection
        ]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if keys is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            made = grpc.ssl_channel_credentials(keys.authority, keys.key, keys.certificate)
            options.append(("grpc.ssl_target_name_override", SERVER_NAME))
            self._channel = grpc.secure_channel(address, made, options)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=wait_s)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise ConnectionError(f"nobody answers at {address}, or not with the keys of this job") from None
        self._out: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._received: deque[Message | None] = deque()
        self._arrived = threading.Condition()
        self.why_ended = ""
        hello = {"secret": secret, "process": process, "host": host_name(), "pid": os.getpid()}
        body = torch.frombuffer(bytearray(json.dumps(hello).encode()), dtype=torch.uint8)
        self._out.put(Message(Kind.HELLO, 0, body))
        call: Any = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")
        self._call = call(self._frames())
        threading.Thread(target=self._read, daemon=True, name="receive").start()

    def _frames(self) -> Iterator[bytes]:
        while (outgoing := self._out.get()) is not None:
            yield from outgoing.frames()

    def send(self, outgoing: Message) -> None:
        """Queues a message."""
        self._out.put(outgoing)

    def receive(self) -> Message | None:
        """Waits for the next message; None when the stream has ended."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._received)
            return self._received.popleft()

    def _put(self, incoming: Message | None) -> None:
        with self._arrived:
            if incoming is not None and incoming.kind in (Kind.ORDER, Kind.TEST):
                # only the newest model is worth the work; those of all rounds would fill the memory of a slow process
                self._received = deque(m for m in self._received if m is None or m.kind != incoming.kind)
            self._received.append(incoming)
            self._arrived.notify()

    def _read(self) -> None:
        """Hands each message over, and None when the stream has ended."""
        assembly = Assembly(_admit)
        try:
            for frame in self._call:
                if (incoming := assembly.add(frame)) is not None:
                    kind, round, content = incoming
                    self._put(Message(kind, round, content.body))
        except grpc_module().RpcError as error:
            self.why_ended = str(error.details() if hasattr(error, "details") else error)
        except BadPayload as error:
            self.why_ended = str(error)
        self._put(None)

    def close(self) -> None:
        """Ends the stream once what is queued has left."""
        self._out.put(None)
        self._call.cancel()
        self._channel.close()


def _admit(kind: Kind, round: int, length: int) -> Collected:
    if length > _LONGEST:
        raise BadPayload(f"a message of {length} bytes")
    return Collected(length)

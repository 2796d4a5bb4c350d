# SPDX-License-Identifier: Apache-2.0
"""The server's end of gRPC: an asyncio server in a thread of its own, with one stream for each worker process.

Nothing here waits for the thread that trains, and nobody who connects can make it wait: what arrives is checked against
what was asked for before a byte of it is kept, unpacked in another thread, and handed over as an event.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import queue
import resource
import secrets
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from phalanx.core.optional import optional
from phalanx.core.packing import Unpacker
from phalanx.core.payload import BadPayload
from phalanx.distributed.server.identity import WORKER, Keys
from phalanx.distributed.server.messages import (
    ANSWERS,
    FRAME_BYTES,
    METHOD,
    SERVICE,
    Assembly,
    Collected,
    Kind,
    Message,
)

HELLO_BYTES, HELLO_S = 4096, 5.0
_SPARE_CONNECTIONS = 32  # beside those of the workers, until they have said who they are
_KEEPALIVE_MS = 30_000
_M_MMAP_THRESHOLD = -3  # of mallopt(3)
_OLD_REPORTS = 64  # that a worker which is behind may still owe

Hello = dict[str, Any]
Event = tuple["Line", Any]  # a process says hello (a dict), an answer has come, the stream has ended (None)
Arriving = Callable[[int, Kind, int, int], Unpacker]  # of a process, a message's kind, round and length


def grpc_module() -> Any:
    """The package grpc.

    Raises:
        MissingPackage: it is not installed.
    """
    return optional("grpc", "a server", "gRPC", "server")


class Line:
    """The server's end of the stream of one worker process.

    It knows what the process was asked for; anything else that arrives ends the stream.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, process: int) -> None:
        self.process, self.received_bytes = process, 0
        self.why_ended = "the connection was lost"
        self._loop, self._more, self._closed = loop, asyncio.Event(), False
        self._out: deque[Message] = deque()
        self._owed: Counter[tuple[Kind, int]] = Counter()
        self._lock = threading.Lock()

    def send(self, outgoing: Message) -> None:
        """Queues a message; an order replaces one that has not left yet."""
        with self._lock:
            if outgoing.kind == Kind.ORDER:
                self._out = deque(m for m in self._out if m.kind != Kind.ORDER)
            if outgoing.kind in ANSWERS:
                self._owed[ANSWERS[outgoing.kind], outgoing.round] += 1
                old = [key for key in self._owed if key[0] == Kind.REPORT]
                for key in old[:-_OLD_REPORTS]:
                    del self._owed[key]
            self._out.append(outgoing)
        self._wake()

    def close(self) -> None:
        """Ends the stream once what is queued has left."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._more.set)

    def settle(self, kind: Kind, round: int) -> bool:
        """Notes that an answer begins to arrive; returns whether it is to a question that still matters.

        Raises:
            BadPayload: nobody asked for it.
        """
        with self._lock:
            if not self._owed[kind, round]:
                del self._owed[kind, round]
                raise BadPayload(f"a message ({kind.name.lower()} of round {round}) that nobody asked for")
            self._owed[kind, round] -= 1
            newest = max((r for k, r in self._owed if k == Kind.REPORT), default=round)
            for key in [
                key
                for key, count in self._owed.items()
                if not count or (key[0] == Kind.REPORT == kind and key[1] < round)
            ]:
                del self._owed[key]
            return kind != Kind.REPORT or round >= newest

    def _next(self) -> Message | None:
        with self._lock:
            return self._out.popleft() if self._out else None

    async def write(self, context: Any) -> None:
        """Sends what is queued, until the line is closed and nothing is left."""
        while True:
            if (outgoing := self._next()) is not None:
                for frame in outgoing.frames():
                    await context.write(frame)
                if outgoing.kind == Kind.END:
                    return
            elif self._closed:
                return
            else:
                self._more.clear()
                # a message may have come since
                if not self._out and not self._closed:
                    await self._more.wait()


class StreamServer:
    """Listens for the worker processes of a run.

    Args:
        host: address to listen at.
        secrets: what each process proves who it is with, where there are no keys.
        keys: of the server, for TLS; then a process is who its certificate says.
        limit_bytes: gives the longest answer of a kind to accept from a process.
        arriving: called when an answer begins to arrive; gives what unpacks it.
        arrived: called with process, kind, round and what has unpacked the answer; what it returns is the event.
    Raises:
        ValueError: the address cannot be listened at.
    """

    def __init__(
        self,
        host: str,
        secrets: Sequence[str],
        keys: Keys | None,
        limit_bytes: Callable[[int, Kind], int],
        arriving: Arriving = lambda process, kind, round, length: Unpacker(length),
        arrived: Callable[[int, Kind, int, Unpacker], Any] = lambda process, kind, round, content: content,
    ) -> None:
        self._secrets, self._limit, self._arriving, self._arrived = secrets, limit_bytes, arriving, arrived
        self._is_tls = keys is not None
        self.events: queue.SimpleQueue[tuple[Line, Any]] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._lines: dict[int, Line] = {}
        # neither the thread that trains nor that of the streams waits while a message is read
        self._unpacking = ThreadPoolExecutor(1, thread_name_prefix="unpack")
        started: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
        _raise_open_files()
        _return_frames()
        self._thread = threading.Thread(target=self._run, args=(host, keys, started), daemon=True, name="server")
        self._thread.start()
        port = started.get()
        if isinstance(port, Exception):
            raise ValueError(f"the server cannot listen at {host or 'any address'} ({port})") from None
        self.port = port

    def _run(self, host: str, keys: Keys | None, started: queue.SimpleQueue[int | Exception]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            port = self._loop.run_until_complete(self._listen(host, keys))
        except Exception as error:
            self._loop.close()
            started.put(error)
            return
        started.put(port)
        try:
            self._loop.run_forever()
        finally:
            left = asyncio.all_tasks(self._loop)
            for task in left:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()

    async def _listen(self, host: str, keys: Keys | None) -> int:
        grpc = grpc_module()
        aio: Any = optional("grpc.aio", "a server", "gRPC", "server")
        processes = len(self._secrets)
        options = [
            ("grpc.max_receive_message_length", FRAME_BYTES + 1024),
            ("grpc.max_send_message_length", FRAME_BYTES + 1024),
            ("grpc.max_metadata_size", 4096),
            ("grpc.max_concurrent_streams", 2),
            ("grpc.server_handshake_timeout_ms", int(1000 * HELLO_S)),
            ("grpc.max_allowed_incoming_connections", 2 * processes + _SPARE_CONNECTIONS),
            ("grpc.max_connection_idle_ms", int(1000 * HELLO_S)),
            ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
            ("grpc.so_reuseport", 0),
        ]
        self._server = aio.server(options=options)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        address = f"[{host}]:0" if ":" in host else f"{host or '[::]'}:0"
        if keys is None:
            port = self._server.add_insecure_port(address)
        else:
            pair = [(keys.key, keys.certificate)]
            made = grpc.ssl_server_credentials(pair, root_certificates=keys.authority, require_client_auth=True)
            port = self._server.add_secure_port(address, made)
        await self._server.start()
        return port

    async def _serve(self, _: Any, context: Any) -> None:
        """One stream, from its hello to its end. Whatever goes wrong ends this stream only."""
        try:
            about = await asyncio.wait_for(self._hello(context), HELLO_S)
        except (BadPayload, ValueError, TypeError, KeyError, RecursionError, TimeoutError) as error:
            grpc = grpc_module()
            words = str(error)[:200] or "no hello in time"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, words)
            return
        line = Line(self._loop, about["process"])
        # whoever has the key is the process: a connection of before that has not ended yet is a dead one
        former, self._lines[line.process] = self._lines.get(line.process), line
        if former is not None:
            former.why_ended = "it connected anew"
            former.close()
        self.events.put((line, about))
        writer = asyncio.ensure_future(line.write(context))
        reader = asyncio.ensure_future(self._read(line, context))
        try:
            done, _pending = await asyncio.wait({writer, reader}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except BadPayload as error:
            line.why_ended = str(error)
        except Exception:
            # the peer has gone, or broke off; the reason stays "the connection was lost"
            pass
        finally:
            for task in (writer, reader):
                task.cancel()
            if self._lines.get(line.process) is line:
                del self._lines[line.process]
            self.events.put((line, None))

    async def _hello(self, context: Any) -> Hello:
        """The process that a new stream belongs to.

        Raises:
            BadPayload: it is none.
        """
        eof = optional("grpc.aio", "a server", "gRPC", "server").EOF
        assembly = Assembly(_admit_hello)
        incoming = None
        while incoming is None:
            frame = await context.read()
            if frame is eof:
                raise BadPayload("no hello")
            incoming = assembly.add(frame)
        text = bytes(incoming[2].body.numpy()).decode()
        # nested deeper it would take the parser's stack
        if text.count("{") + text.count("[") > 4:
            raise BadPayload("a hello that is no object")
        about = json.loads(text)
        process = about["process"]
        if type(process) is not int or not 0 <= process < len(self._secrets):
            raise BadPayload("no such process")
        if self._is_tls:
            names = [name.decode() for name in context.auth_context().get("x509_common_name", [])]
            known = names == [WORKER.format(process)]
        else:
            known = secrets.compare_digest(str(about["secret"]).encode(), self._secrets[process].encode())
        if not known:
            raise BadPayload(f"process {process} has another identity")
        return {"process": process, "host": str(about.get("host", ""))[:64], "pid": _small(about.get("pid"))}

    async def _read(self, line: Line, context: Any) -> None:
        eof = optional("grpc.aio", "a server", "gRPC", "server").EOF

        def admit(kind: Kind, round: int, length: int) -> Unpacker | None:
            limit = self._limit(line.process, kind)
            if length > limit:
                raise BadPayload(f"a message of {length} bytes, at most {limit} allowed")
            return self._arriving(line.process, kind, round, length) if line.settle(kind, round) else None

        def take(frame: bytes) -> None:
            line.received_bytes += len(frame)
            if (answer := assembly.add(frame)) is not None:
                self.events.put((line, self._arrived(line.process, *answer)))

        assembly = Assembly(admit)
        while (frame := await context.read()) is not eof:
            await self._loop.run_in_executor(self._unpacking, take, frame)

    def close(self, linger_s: float) -> None:
        """Ends all streams, and waits so long for what is still to leave."""
        future = asyncio.run_coroutine_threadsafe(self._server.stop(linger_s), self._loop)
        with suppress(TimeoutError, asyncio.CancelledError):
            future.result(timeout=linger_s + 5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        self._unpacking.shutdown(wait=False, cancel_futures=True)


def _admit_hello(kind: Kind, round: int, length: int) -> Collected:
    if kind != Kind.HELLO or not 0 < length <= HELLO_BYTES:
        raise BadPayload("no hello")
    return Collected(length)


def _small(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _return_frames() -> None:
    """Has the C library give the memory of each frame back, in place of some for every thread that read one."""
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, FRAME_BYTES // 2)


def _raise_open_files() -> None:
    """Allows as many open files as the system lets this user have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def host_name() -> str:
    """The name of this host, as a worker tells it."""
    return socket.gethostname()[:64]

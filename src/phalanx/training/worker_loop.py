# SPDX-License-Identifier: Apache-2.0
"""The loop of a worker's process in a server's job: it computes what the server requests until the run ends."""

from __future__ import annotations

from phalanx.attacks.faults import inject_faults
from phalanx.core.packing import pack
from phalanx.core.parser import parse
from phalanx.core.payload import Payload
from phalanx.core.registry import import_extensions
from phalanx.core.trees import from_payload, memories_of, to_payload
from phalanx.core.wire_stage import Upload
from phalanx.distributed.server.identity import Keys
from phalanx.distributed.server.messages import Kind, Message, message
from phalanx.distributed.server.transport import NUMBERS
from phalanx.distributed.server.worker_connection import WorkerConnection
from phalanx.distributed.server_transport import metrics_to_payload
from phalanx.training.phase import Run
from phalanx.training.worker_runtime import WorkerRuntime


def worker_loop(
    host: str,
    port: int,
    process: int,
    workers: tuple[int, ...],
    secret: str = "",
    keys: Keys | None = None,
    wait_s: float = 60.0,
) -> None:
    """Answers the messages of a server until it ends the run.

    Args:
        process: number of this process among the server's worker processes.
        workers: the workers of this process.
        secret: proves which process this is, on one machine.
        keys: prove it beyond one machine.
        wait_s: how long to wait for the connection.
    Raises:
        ConnectionError: there is no server, or the stream ended before the run did.
    """
    connection = WorkerConnection(host, port, process, secret, keys, wait_s)
    handler = _MessageHandler(workers, connection)
    while True:
        incoming = connection.receive()
        if incoming is None or incoming.kind == Kind.END:
            connection.close()
            if incoming is None:
                raise ConnectionError(connection.why_ended or "the server has gone")
            return
        handler.handle(incoming)


class _MessageHandler:
    """Computes what a message of the server asks for, and sends the answer."""

    def __init__(self, workers: tuple[int, ...], connection: WorkerConnection) -> None:
        self._workers, self._connection = workers, connection
        self._runtime: WorkerRuntime | None = None
        self._uploads: dict[int, Upload] = {}
        self._round_index = -1

    def handle(self, incoming: Message) -> None:
        match incoming.kind:
            case Kind.SETUP:
                setup = from_payload(incoming.payload())
                import_extensions(setup["modules"])
                run = parse(setup["run"])
                assert isinstance(run, Run)
                self._runtime = WorkerRuntime(run, self._workers)
                self._runtime.load_memories(setup.get("memories", {}))
            case Kind.ORDER:
                assert self._runtime is not None
                self._round_index = incoming.round
                self._uploads, metrics = self._runtime.run_round(self._round_index, incoming.payload())
                payloads = {worker: upload.now for worker, upload in self._uploads.items()}
                self._send(Kind.REPORT, {NUMBERS: metrics, **_joined(payloads)})
            case Kind.ASK if incoming.round == self._round_index:
                worker = int(incoming.payload()["worker"])
                self._send(Kind.HELD, _joined({worker: self._uploads[worker].on_request}))
            case Kind.TEST:
                assert self._runtime is not None
                found = self._runtime.evaluate(incoming.round, incoming.payload())
                self._connection.send(message(Kind.TESTED, incoming.round, metrics_to_payload(found)))
            case Kind.RECALL:
                memories = self._runtime.memories if self._runtime is not None else {}
                payload = to_payload(memories_of(memories, self._workers))
                self._connection.send(message(Kind.MEMORY, self._round_index, payload))
            case _:
                pass

    def _send(self, kind: Kind, payload: Payload) -> None:
        assert self._runtime is not None
        body = inject_faults(self._runtime.run.faults, self._workers, self._round_index, pack(payload))
        self._connection.send(Message(kind, self._round_index, body))


def _joined(payloads: dict[int, Payload | None]) -> Payload:
    """The payloads of several workers as one."""
    return {f"{worker}/{key}": tensor for worker, p in payloads.items() if p is not None for key, tensor in p.items()}

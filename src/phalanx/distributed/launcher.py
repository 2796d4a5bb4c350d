# SPDX-License-Identifier: Apache-2.0
"""Starts a server's job under torchrun: rank 0 is the server, and each other rank guards one worker process.

torchrun ends all processes of a job when one of them fails. So the process that torchrun started does not compute: it
forks the worker, and forks it again when it dies. Server and guards find each other through torchrun's store, which
holds addresses and no secret. A fork keeps what was imported, and no thread: gRPC is first used in the worker itself.
For Linux, as other systems cannot fork a process that has used the frameworks below.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from torch import distributed as dist

from phalanx.core.expression import require
from phalanx.distributed.server.identity import SERVER, WORKER, Keys, is_loopback, write_secrets
from phalanx.distributed.server.membership import Timeouts
from phalanx.distributed.server.transport import GrpcTransport

_POLL_S = 0.1  # between two checks of the child and the store
_GRACE_S = 3.0  # for a worker to exit by itself when its run is over
_AGAIN_S, _MOST_AGAIN_S = 0.5, 30.0  # before a worker that died is started again; doubled each time it dies at once
_NEEDED = ("numba", "torch._dynamo")  # slow to import; a forked worker has them already

_PR_SET_PDEATHSIG = 1  # of prctl(2)

WorkerLoop = Callable[..., None]  # (host, port, process, workers, secret, keys)


def _end_with(parent: int) -> None:
    """Has this process killed when its parent dies: a guard that is started again starts a worker of its own."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Launcher:
    """One process of a server's job; the processes find each other in torchrun's store.

    Args:
        worker_loop: the whole program of a worker's process.
        keys: folder with the keys of this host's processes, for TLS; needed unless all processes are on one machine.
    Raises:
        ValueError: not under torchrun, with a single process, on another system than Linux, or beyond one machine
            without keys.
    """

    def __init__(self, worker_loop: WorkerLoop, keys: Path | None = None) -> None:
        if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ValueError(
                "a server needs worker processes: phalanx run RECIPE --server --processes 9 starts nine on this "
                "machine; several machines take torchrun"
            )
        require(
            sys.platform.startswith("linux"),
            f"a server's job runs on Linux, and this is {sys.platform}; leave --server out",
        )
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.processes = size - 1
        self._host, self._keys = os.environ["MASTER_ADDR"], keys
        require(
            keys is not None or is_loopback(self._host),
            f"the server listens at {self._host}, beyond this machine, where anybody could pose as a worker; make keys "
            f"by phalanx keys FOLDER --workers {self.processes}, copy each host its own, and give --keys FOLDER",
        )
        # read at once: a missing key is found before anything is computed
        self._own_keys = (
            None if keys is None else Keys.read(keys, WORKER.format(self.rank - 1) if self.rank else SERVER)
        )
        port = int(os.environ["MASTER_PORT"])
        ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and self.rank == 0
        # not among the exported names of torch.distributed, but documented there
        made: Any = dist
        store = made.TCPStore(self._host, port, size, ours, timeout=timedelta(minutes=10), wait_for_workers=False)
        # torchrun may start a job again in the same store
        self._store = made.PrefixStore(f"phalanx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._worker_loop, self._num_runs, self._child = worker_loop, 0, 0
        self._folder = tempfile.TemporaryDirectory(prefix="phalanx-") if self.rank == 0 and keys is None else None
        self._secrets = [] if self._folder is None else write_secrets(Path(self._folder.name), self.processes)

    def open(self, workers: int, timeouts: Timeouts | None = None) -> GrpcTransport:
        """At rank 0: returns the transport of the next run once its workers have connected."""
        transport = GrpcTransport(
            workers,
            self.processes,
            timeouts,
            host=self._host,
            secrets=self._secrets,
            keys=self._own_keys,
            left=self._over,
        )
        address = {
            "port": transport.membership.port,
            "folder": None if self._folder is None else self._folder.name,
            "shares": [list(member.workers) for member in transport.membership.all],
        }
        self._store.set(f"run/{self._num_runs}", json.dumps(address))
        self._num_runs += 1
        transport.membership.join()
        return transport

    def _over(self) -> None:
        """Says that the last run is over, which ends hung workers too."""
        self._store.set(f"over/{self._num_runs - 1}", "")

    def end(self) -> None:
        """At rank 0: says that no run follows."""
        self._store.set(f"run/{self._num_runs}", "")
        if self._folder is not None:
            self._folder.cleanup()

    def guard(self) -> None:
        """At every other rank: keeps a worker process alive in each run, until no run follows."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        for name in _NEEDED:
            importlib.import_module(name)
        while text := self._wait(f"run/{self._num_runs}"):
            self._keep_worker(json.loads(text), f"over/{self._num_runs}")
            self._num_runs += 1

    def _wait(self, key: str) -> str:
        while not self._store.check([key]):
            time.sleep(_POLL_S)
        return self._store.get(key).decode()

    def _fork(self, address: dict[str, Any]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        reader, writer = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(writer)
            self._run_worker(address, reader)
        os.close(reader)
        with os.fdopen(writer, "wb") as pipe, suppress(BrokenPipeError):
            if address["folder"] is not None:
                pipe.write((Path(address["folder"]) / WORKER.format(self.rank - 1)).read_bytes())

    def _run_worker(self, address: dict[str, Any], reader: int) -> NoReturn:
        """Runs the worker and ends its process."""
        code, process = 1, self.rank - 1
        _end_with(os.getppid())
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            with os.fdopen(reader, "rb") as pipe:
                secret = pipe.read().decode()
            workers = tuple(address["shares"][process])
            self._worker_loop(self._host, address["port"], process, workers, secret, self._own_keys)
            code = 0
        except ConnectionError as error:
            print(f"worker process {process}: no server: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _keep_worker(self, address: dict[str, Any], over: str) -> None:
        """Starts the worker, again whenever it dies, until the run is over; then kills it if it does not exit."""
        pause, again, began = _AGAIN_S, 0.0, 0.0
        while not self._store.check([over]):
            now = time.monotonic()
            if not self._child and now >= again:
                began = now
                self._fork(address)
            if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
                self._child = 0
                # one that worked for a while begins with a short pause again
                pause = _AGAIN_S if time.monotonic() - began > _MOST_AGAIN_S else min(2 * pause, _MOST_AGAIN_S)
                again = time.monotonic() + pause
            time.sleep(_POLL_S)
        until = time.monotonic() + _GRACE_S
        while self._child and time.monotonic() < until:
            if os.waitpid(self._child, os.WNOHANG)[0]:
                self._child = 0
            time.sleep(_POLL_S / 2)
        if self._child:
            self._kill()
            os.waitpid(self._child, 0)
            self._child = 0

    def _kill(self) -> None:
        # a stopped process ends by nothing less
        with suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)

    def _terminated(self, number: int, frame: Any) -> None:
        if self._child:
            self._kill()
        os._exit(128 + number)

# SPDX-License-Identifier: Apache-2.0
"""Starts a server's job under torchrun: rank 0 is the server, and each other rank guards one worker process.

torchrun ends all processes of a job when one of them fails. So the process that torchrun started does not compute: it
forks the worker, and stays when the worker dies or hangs. Server and guards find each other through torchrun's store.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

from torch import distributed as dist

from phalanx.distributed.server.membership import Timeouts
from phalanx.distributed.server.transport import TcpTransport

_POLL_S = 0.1  # between two checks of the child and the store
_GRACE_S = 3.0  # for a worker to exit by itself when its run is over
_NEEDED = ("numba", "torch._dynamo")  # slow to import; a forked worker has them already


class Launcher:
    """One process of a server's job; the processes find each other in torchrun's store.

    Args:
        worker_loop: the whole program of a worker's process; called with host, port, token, its number and its
            workers.
    Raises:
        ValueError: not under torchrun, or with a single process.
    """

    def __init__(self, worker_loop: Callable[[str, int, str, int, tuple[int, ...]], None]) -> None:
        if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ValueError(
                "a server needs worker processes: torchrun --nproc-per-node 10 -m phalanx run RECIPE --server "
                "makes one server and nine workers"
            )
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.processes = size - 1
        self._host = os.environ["MASTER_ADDR"]
        port = int(os.environ["MASTER_PORT"])
        ours = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and self.rank == 0
        # not among the exported names of torch.distributed, but documented there
        made: Any = dist
        store = made.TCPStore(self._host, port, size, ours, timeout=timedelta(minutes=10), wait_for_workers=False)
        # torchrun may start a job again in the same store
        self._store = made.PrefixStore(f"phalanx/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        self._worker_loop, self._num_runs, self._child = worker_loop, 0, 0

    def open(self, workers: int, timeouts: Timeouts | None = None) -> TcpTransport:
        """At rank 0: returns the transport of the next run once its workers have connected."""
        transport = TcpTransport(workers, self.processes, timeouts, left=self._over)
        address = {
            "port": transport.membership.port,
            "token": transport.membership.token,
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

    def guard(self) -> None:
        """At every other rank: starts a worker process for each run, until no run follows."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        for name in _NEEDED:
            importlib.import_module(name)
        while text := self._wait(f"run/{self._num_runs}"):
            address = json.loads(text)
            self._child = self._fork(address)
            self._watch(f"over/{self._num_runs}")
            self._num_runs += 1

    def _wait(self, key: str) -> str:
        while not self._store.check([key]):
            time.sleep(_POLL_S)
        return self._store.get(key).decode()

    def _fork(self, address: dict[str, Any]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        self._run_worker(address)

    def _run_worker(self, address: dict[str, Any]) -> NoReturn:
        """Runs the worker and ends its process."""
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            process = self.rank - 1
            self._worker_loop(self._host, address["port"], address["token"], process, tuple(address["shares"][process]))
            code = 0
        except ConnectionError as error:
            print(f"worker process {self.rank - 1}: no server: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _watch(self, over: str) -> None:
        """Waits until the run is over; then kills the worker if it does not exit by itself."""
        until = None
        while until is None or (self._child and time.monotonic() < until):
            if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
                self._child = 0
            if until is None and self._store.check([over]):
                until = time.monotonic() + _GRACE_S
            time.sleep(_POLL_S)
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

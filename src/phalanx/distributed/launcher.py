# SPDX-License-Identifier: Apache-2.0
"""A server's job under torchrun: rank 0 serves, and each other rank guards one worker process.

torchrun ends all processes of a job when one of them fails. So the process that it knows does not work itself: it forks
the worker, and stays when the worker dies or hangs. Server and guards find each other through torchrun's store.
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

from phalanx.distributed.server.membership import Patience
from phalanx.distributed.server.transport import TcpTransport

_LOOK_S = 0.1  # between two looks at a child and at the store
_GRACE_S = 3.0  # for a worker to leave by itself when its run is over
_NEEDED = ("numba", "torch._dynamo")  # a worker would wait for them in its first round, anew in every run


class Launcher:
    """What the processes of a server's job know of each other, in torchrun's store.

    Args:
        attend: what a worker process does from its first to its last moment, given host, port, token, its number and
            its workers.
    Raises:
        ValueError: not under torchrun, or with a single process.
    """

    def __init__(self, attend: Callable[[str, int, str, int, tuple[int, ...]], None]) -> None:
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
        self._attend, self._count, self._child = attend, 0, 0

    def open(self, workers: int, patience: Patience | None = None) -> TcpTransport:
        """At rank 0: the world of the next run, once its workers have connected."""
        world = TcpTransport(workers, self.processes, patience, left=self._over)
        place = {
            "port": world.seats.port,
            "token": world.seats.token,
            "shares": [list(seat.workers) for seat in world.seats.all],
        }
        self._store.set(f"run/{self._count}", json.dumps(place))
        self._count += 1
        world.seats.join()
        return world

    def _over(self) -> None:
        """The run that was opened last is over, for hung workers too."""
        self._store.set(f"over/{self._count - 1}", "")

    def end(self) -> None:
        """At rank 0: no run follows."""
        self._store.set(f"run/{self._count}", "")

    def guard(self) -> None:
        """At every other rank: a worker process for each run, until none follows."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        for name in _NEEDED:
            importlib.import_module(name)
        while place := self._wait(f"run/{self._count}"):
            told = json.loads(place)
            self._child = self._fork(told)
            self._watch(f"over/{self._count}")
            self._count += 1

    def _wait(self, key: str) -> str:
        while not self._store.check([key]):
            time.sleep(_LOOK_S)
        return self._store.get(key).decode()

    def _fork(self, told: dict[str, Any]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        self._work(told)

    def _work(self, told: dict[str, Any]) -> NoReturn:
        """The worker's process, from its first to its last moment."""
        code = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            process = self.rank - 1
            self._attend(self._host, told["port"], told["token"], process, tuple(told["shares"][process]))
            code = 0
        except ConnectionError as error:
            print(f"worker process {self.rank - 1}: no server: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _watch(self, over: str) -> None:
        """Until the run is over; then the worker has a moment to leave."""
        until = None
        while until is None or (self._child and time.monotonic() < until):
            if self._child and os.waitpid(self._child, os.WNOHANG)[0]:
                self._child = 0
            if until is None and self._store.check([over]):
                until = time.monotonic() + _GRACE_S
            time.sleep(_LOOK_S)
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

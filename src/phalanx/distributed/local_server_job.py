# SPDX-License-Identifier: Apache-2.0
"""A server's job on this machine without torchrun: a server, and processes that guard workers and may be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import distributed as dist

from phalanx.core.expression import require

PROCESSES = "PHALANX_PROCESSES"  # worker processes, in the environment of all processes of such a job
_POLL_S = 0.05
_AGAIN_S, _MOST_AGAIN_S = 0.5, 30.0  # before a process is started again; doubled each time it dies at once
_GRACE_S = 10.0  # for the guards to end behind the server
_HOST = "127.0.0.1"


def run_local_job(argv: Sequence[str], processes: int) -> int:
    """Runs `phalanx ARGV` in a server's process and in `processes` more, each of which guards a worker.

    A guard that dies is started again, and its worker with it. The job ends with its server.

    Returns:
        The exit code of the server.
    Raises:
        ValueError: no process, under torchrun, or on another system than Linux.
    """
    require(processes >= 1, f"a server's job has one worker process or more, got {processes}")
    require("RANK" not in os.environ, "torchrun has started the processes already; leave --processes or torchrun out")
    require(
        sys.platform.startswith("linux"),
        f"a server's job runs on Linux, and this is {sys.platform}; leave --server out",
    )
    made: Any = dist
    store = made.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    jobs = [_Kept(argv, rank, processes, store.port) for rank in range(processes + 1)]
    server, guards = jobs[0], jobs[1:]
    # the terminal sends Ctrl-C to all: the server saves its state and ends, and the others with it
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = signal.signal(signal.SIGTERM, lambda number, frame: server.send(number))
    try:
        while (code := server.process.poll()) is None:
            for guard in guards:
                guard.keep()
            time.sleep(_POLL_S)
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until and any(guard.process.poll() is None for guard in guards):
            time.sleep(_POLL_S)
        return code if code >= 0 else 128 - code
    finally:
        for job in jobs:
            job.end()
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, asked)


class _Kept:
    """A process of the job, which can be started again.

    Args:
        rank: 0 is the server.
        port: of the store in which the processes find each other.
    """

    def __init__(self, argv: Sequence[str], rank: int, processes: int, port: int) -> None:
        self._command = [sys.executable, "-m", "phalanx", *argv]
        self._rank, self._pause, self._again = rank, _AGAIN_S, 0.0
        self._environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "RANK": str(rank),
            "WORLD_SIZE": str(processes + 1),
            "MASTER_ADDR": _HOST,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there, none of the processes makes it
            PROCESSES: str(processes),
        }
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._began = time.monotonic()
        return subprocess.Popen(self._command, env=self._environment)

    def keep(self) -> None:
        """Starts the process again if it has died, after a pause."""
        now = time.monotonic()
        if self.process.poll() in (None, 0):
            return
        if not self._again:
            how = -self.process.returncode
            why = signal.Signals(how).name if how > 0 else f"exit code {-how}"
            print(f"the guard of worker process {self._rank - 1} died ({why}); it is started again", file=sys.stderr)
            # one that worked for a while begins with a short pause again
            self._pause = _AGAIN_S if now - self._began > _MOST_AGAIN_S else min(2 * self._pause, _MOST_AGAIN_S)
            self._again = now + self._pause
        elif now >= self._again:
            self._again = 0.0
            self.process = self._start()

    def send(self, number: int) -> None:
        """Sends a signal to the process if it is there."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self) -> None:
        """Ends the process, at last by force."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=_GRACE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

# SPDX-License-Identifier: Apache-2.0
"""A study on several cores: a pool of processes that each run whole jobs of one study folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from phalanx.tools.runner.study import Study, StudyFolder, Watcher
from phalanx.training.interrupt import Interrupted, stop_requests

TRIES = 2  # attempts at a job whose process dies; the second one goes on from the checkpoint
_POLL_S = 0.1  # between two checks whether a stop was asked for
_GRACE_S = 60.0  # time for a process to end its round when a stop was asked for

Message = dict[str, Any]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcess:
    """A process that runs jobs of a study, one after the other, and sends messages about them.

    It is in a session of its own, so that a Ctrl-C reaches only the process of the pool. It stops by itself when that
    process dies (`phalanx.tools.runner.worker_process`).

    Args:
        lock: the open file of the folder's lock, which the process holds as well.
        messages: the queue for its messages, each with the process that sent it; None when the process has ended.
    """

    def __init__(
        self,
        folder: StudyFolder,
        lock: int,
        tensorboard: bool,
        messages: SimpleQueue[tuple[WorkerProcess, Message | None]],
    ) -> None:
        command = [
            sys.executable,
            "-m",
            "phalanx.tools.runner.worker_process",
            str(folder.path),
            *(["--tensorboard"] if tensorboard else []),
        ]
        self.label, self._messages = "", messages
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(lock,),
        )
        threading.Thread(target=self._read_messages, daemon=True).start()

    def submit(self, label: str) -> None:
        """Sends the label of the next job."""
        self.label = label
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # the process has died; its last message will say so
            self.process.stdin.write(json.dumps(label) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """Asks the process to end its round, write a checkpoint and exit."""
        self.process.send_signal(signal.SIGTERM)

    def close(self, grace_s: float) -> None:
        """Waits until the process has ended; kills it after this time."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # no job follows
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read_messages(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(json.JSONDecodeError):  # a line that the death of the process cut off
                    self._messages.put((self, json.loads(line)))
        self._messages.put((self, None))


class ProcessPool:
    """Processes that run the jobs of a study, several at a time.

    Args:
        jobs: number of processes at the same time, >= 1.
        lock: what `folder.held()` gives.
    """

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        watcher: Watcher | None,
        jobs: int,
        lock: int,
        tensorboard: bool = False,
    ) -> None:
        self.study, self.folder, self.watcher = study, folder, watcher
        self._limit, self._lock, self._tensorboard = jobs, lock, tensorboard
        self._pending: deque[str] = deque()
        self._messages: SimpleQueue[tuple[WorkerProcess, Message | None]] = SimpleQueue()
        self._workers: list[WorkerProcess] = []
        self._tries: Counter[str] = Counter()
        self._deaths: dict[str, str] = {}  # how the last process of a job died
        self._error = ""  # the first error of a job
        self._stopping = False

    def map(self, finished: Sequence[str]) -> None:
        """Does what `run_study` does, with several jobs at a time.

        A job whose process dies is begun again from its checkpoint, once; a second death is an error when all others
        have ended. An error of a job stops the others.

        Args:
            finished: labels of the jobs to keep as they are.
        Raises:
            Interrupted: a stop was asked for; what has been done lies in the folder.
            ValueError: a job raised an error, or its process died twice.
        """
        for label in finished:
            if self.watcher is not None:
                self.watcher.end(label, self.folder.summary(label) or {})
        self._pending.extend(label for label in self.study.jobs if label not in finished)
        with stop_requests() as stop:
            self._run(stop)
        if self._error:
            raise ValueError(self._error)
        if self._stopping:
            done = len(self.folder.finished(self.study))
            raise Interrupted(f"stopped with {done} of {len(self.study.jobs)} jobs done")
        if self._deaths:
            named = "; ".join(f"{label} ({how})" for label, how in self._deaths.items())
            raise ValueError(
                f"the processes of {named} died {TRIES} times; is there enough memory? fewer --jobs need less"
            )

    def _run(self, stop: threading.Event) -> None:
        """Runs all jobs until they are done, one raises an error, or a stop is requested."""
        try:
            while True:
                self._submit_pending()
                if not self._workers:
                    return
                with suppress(Empty):
                    self._handle(*self._messages.get(timeout=_POLL_S))
                if (stop.is_set() or self._error) and not self._stopping:
                    self._stopping = True
                    for worker in self._workers:
                        worker.stop()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.close(_GRACE_S)

    def _submit_pending(self) -> None:
        """Gives jobs to idle and new processes up to the limit, and closes processes that stay idle."""
        while self._pending and not self._stopping:
            idle = next((worker for worker in self._workers if not worker.label), None)
            if idle is None and len(self._workers) >= self._limit:
                return
            if idle is None:
                idle = WorkerProcess(self.folder, self._lock, self._tensorboard, self._messages)
                self._workers.append(idle)
            label = self._pending.popleft()
            self._tries[label] += 1
            idle.submit(label)
            if self.watcher is not None:
                self.watcher.begin(label, self.study.jobs[label])
        for worker in [worker for worker in self._workers if not worker.label]:
            self._workers.remove(worker)
            worker.close(_GRACE_S)

    def _handle(self, worker: WorkerProcess, message: Message | None) -> None:
        """Handles one message of a process."""
        if worker not in self._workers:
            return
        if message is None:
            self._workers.remove(worker)
            worker.close(_GRACE_S)
            self._retry_or_give_up(worker)
        elif "error" in message:
            self._error = self._error or f"{worker.label}: {message['error']}"
            worker.label = ""
        elif "end" in message:
            label, worker.label = worker.label, ""
            if self.watcher is not None:
                self.watcher.end(label, message["end"])
        elif self.watcher is not None and "round" in message:
            self.watcher.round(worker.label, message["round"])
        elif self.watcher is not None and "progress" in message:
            self.watcher.progress(worker.label, message["progress"])

    def _retry_or_give_up(self, worker: WorkerProcess) -> None:
        """Begins the job of a process that has ended again, or gives it up."""
        label, code = worker.label, worker.process.returncode
        if not label or self._stopping:
            return
        if self._tries[label] < TRIES:
            self._pending.appendleft(label)
            return
        self._deaths[label] = f"killed by signal {-code}" if code < 0 else f"ended with {code}"

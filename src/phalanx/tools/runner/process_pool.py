# SPDX-License-Identifier: Apache-2.0
"""A study on several cores: processes that each do whole jobs of one study folder."""

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

TRIES = 2  # of a job whose process dies; the second one goes on from the checkpoint
_LOOK_S = 0.1  # between two looks at whether a stop was asked for
_GRACE_S = 60.0  # for a process to end its round when a stop was asked for

Message = dict[str, Any]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerProcess:
    """A process that does jobs of a study, one after the other, and says how they go on.

    It is in a session of its own, so that a Ctrl-C reaches only whoever commands it, and it stops by itself when that
    process dies (`phalanx.tools.runner.worker_process`).

    Args:
        lock: the open file of the folder's lock, which it holds as well.
        said: where its messages go, each with the hand; None when it has ended.
    """

    def __init__(
        self, folder: StudyFolder, lock: int, tensorboard: bool, said: SimpleQueue[tuple[WorkerProcess, Message | None]]
    ) -> None:
        command = [
            sys.executable,
            "-m",
            "phalanx.tools.runner.worker_process",
            str(folder.path),
            *(["--tensorboard"] if tensorboard else []),
        ]
        self.label, self._said = "", said
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=(lock,),
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def give(self, label: str) -> None:
        """The next job."""
        self.label = label
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which its last message will say
            self.process.stdin.write(json.dumps(label) + "\n")
            self.process.stdin.flush()

    def stop(self) -> None:
        """It ends its round, writes a checkpoint and leaves."""
        self.process.send_signal(signal.SIGTERM)

    def leave(self, grace_s: float) -> None:
        """Waits for its end, and makes one."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()  # no job follows
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(json.JSONDecodeError):  # cut off by its death
                    self._said.put((self, json.loads(line)))
        self._said.put((self, None))


class ProcessPool:
    """Hands at work on a study.

    Args:
        jobs: hands at a time, >= 1.
    """

    def __init__(
        self,
        study: Study,
        finished: Sequence[str],
        folder: StudyFolder,
        watcher: Watcher | None,
        jobs: int,
        lock: int,
        tensorboard: bool = False,
    ) -> None:
        self.study, self.folder, self.watcher = study, folder, watcher
        self.waiting = deque(label for label in study.jobs if label not in finished)
        self._limit, self._lock, self._tensorboard = jobs, lock, tensorboard
        self._said: SimpleQueue[tuple[WorkerProcess, Message | None]] = SimpleQueue()
        self._hands: list[WorkerProcess] = []
        self._tries: Counter[str] = Counter()
        self.lost: dict[str, str] = {}  # how the last process of a job died
        self.wrong = ""  # the first error of a job
        self.stopping = False

    def work(self, stop: threading.Event) -> None:
        """All jobs, until they are done, one raises an error, or a stop is asked for."""
        try:
            while True:
                self._fill()
                if not self._hands:
                    return
                with suppress(Empty):
                    self._hear(*self._said.get(timeout=_LOOK_S))
                if (stop.is_set() or self.wrong) and not self.stopping:
                    self.stopping = True
                    for hand in self._hands:
                        hand.stop()
        finally:
            for hand in self._hands:
                hand.process.kill()
                hand.leave(_GRACE_S)

    def _fill(self) -> None:
        """Work for as many hands as there may be, and none for the others."""
        while self.waiting and not self.stopping:
            idle = next((hand for hand in self._hands if not hand.label), None)
            if idle is None and len(self._hands) >= self._limit:
                return
            if idle is None:
                idle = WorkerProcess(self.folder, self._lock, self._tensorboard, self._said)
                self._hands.append(idle)
            label = self.waiting.popleft()
            self._tries[label] += 1
            idle.give(label)
            if self.watcher is not None:
                self.watcher.begin(label, self.study.jobs[label])
        for hand in [hand for hand in self._hands if not hand.label]:
            self._hands.remove(hand)
            hand.leave(_GRACE_S)

    def _hear(self, hand: WorkerProcess, message: Message | None) -> None:
        if hand not in self._hands:
            return
        if message is None:
            self._hands.remove(hand)
            hand.leave(_GRACE_S)
            self._mourn(hand)
        elif "error" in message:
            self.wrong = self.wrong or f"{hand.label}: {message['error']}"
            hand.label = ""
        elif "end" in message:
            label, hand.label = hand.label, ""
            if self.watcher is not None:
                self.watcher.end(label, message["end"])
        elif self.watcher is not None and "round" in message:
            self.watcher.round(hand.label, message["round"])
        elif self.watcher is not None and "told" in message:
            self.watcher.told(hand.label, message["told"])

    def _mourn(self, hand: WorkerProcess) -> None:
        """A hand has ended: its job, if it had one, is begun again or given up."""
        label, code = hand.label, hand.process.returncode
        if not label or self.stopping:
            return
        if self._tries[label] < TRIES:
            self.waiting.appendleft(label)
            return
        self.lost[label] = f"killed by signal {-code}" if code < 0 else f"ended with {code}"


def side_by_side(
    study: Study,
    finished: Sequence[str],
    folder: StudyFolder,
    watcher: Watcher | None,
    jobs: int,
    lock: int,
    tensorboard: bool = False,
) -> None:
    """Does what `run_study` does, with several jobs at a time.

    A job whose process dies is begun again from its checkpoint, once; a second death is an error when all others have
    ended. An error of a job stops the others.

    Args:
        jobs: processes at a time, >= 1.
        lock: what `folder.held()` gives.
    Raises:
        Interrupted: a stop was asked for; what has been done lies in the folder.
        ValueError: a job raised an error, or its process died twice.
    """
    for label in finished:
        if watcher is not None:
            watcher.end(label, folder.summary(label) or {})
    crew = ProcessPool(study, finished, folder, watcher, jobs, lock, tensorboard)
    with stop_requests() as stop:
        crew.work(stop)
    if crew.wrong:
        raise ValueError(crew.wrong)
    if crew.stopping:
        raise Interrupted(f"stopped with {len(folder.finished(study))} of {len(study.jobs)} jobs done")
    if crew.lost:
        named = "; ".join(f"{label} ({how})" for label, how in crew.lost.items())
        raise ValueError(f"the processes of {named} died {TRIES} times; is there enough memory? fewer --jobs need less")

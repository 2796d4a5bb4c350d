# SPDX-License-Identifier: Apache-2.0
"""`python -m phalanx.tools.runner.worker_process FOLDER` runs jobs of a study for `phalanx.tools.runner.process_pool`.

It reads the labels of the jobs from stdin, each as a line of JSON.

It writes lines of JSON: {"round": metrics}, {"progress": words}, then {"end": summary} or {"error": sentence}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from phalanx.distributed.job import Processes
from phalanx.tools.runner.study import StudyFolder, run_job
from phalanx.training.interrupt import Interrupted
from phalanx.training.run_folder import RunFolder


class JobQueue:
    """The labels of the jobs, as they arrive on stdin.

    If stdin ends while a job is running, the process that sent the job is dead, and this process gets SIGTERM.
    """

    def __init__(self) -> None:
        self._labels: SimpleQueue[str | None] = SimpleQueue()
        self._busy = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        while (label := self._labels.get()) is not None:
            yield label

    def done(self) -> None:
        """The job of the last label has ended; to be called before the message that says so."""
        self._busy.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            self._busy.set()
            self._labels.put(json.loads(line))
        self._labels.put(None)
        if self._busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def main(path: Path, tensorboard: bool) -> None:
    """Runs jobs until stdin ends or a stop is requested."""
    # what libraries print goes to stderr, since stdout carries the messages
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        with suppress(BrokenPipeError):  # the reader is dead; the round ends all the same
            out.write(json.dumps(message) + "\n")
            out.flush()

    folder = StudyFolder(path)
    jobs, queue = folder.study.jobs, JobQueue()
    for label in queue:
        target = RunFolder(folder.run_path(label), tensorboard)
        try:
            run_job(jobs[label], Processes(), target, lambda line: send(round=line), lambda words: send(progress=words))
        except Interrupted:
            return
        except (ValueError, OSError) as error:
            send(error=str(error))
            return
        except Exception as error:
            send(error=f"{type(error).__name__}: {error}")
            raise
        queue.done()
        send(end=target.summary or {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--tensorboard" in sys.argv[2:])

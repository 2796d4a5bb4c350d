# SPDX-License-Identifier: Apache-2.0
"""`python -m phalanx.tools.runner.worker_process FOLDER` runs jobs of a study for `phalanx.tools.runner.process_pool`.

The labels of the jobs come in, each as a line of JSON.

What comes out are lines of JSON: {"round": metrics}, {"told": words}, then {"end": summary} or {"error": sentence}.
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


class Orders:
    """The labels that come in.

    When the last one has come and a job is under way, whoever gave it is dead: the process is asked to stop.
    """

    def __init__(self) -> None:
        self._labels: SimpleQueue[str | None] = SimpleQueue()
        self._busy = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        while (label := self._labels.get()) is not None:
            yield label

    def done(self) -> None:
        """The last label's job is over, which nobody has been told yet."""
        self._busy.clear()

    def _read(self) -> None:
        for line in sys.stdin:
            self._busy.set()
            self._labels.put(json.loads(line))
        self._labels.put(None)
        if self._busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def main(path: Path, tensorboard: bool) -> None:
    """Jobs until none comes, or a stop is asked for."""
    # what libraries print is no message
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        with suppress(BrokenPipeError):  # whoever listened is dead, and the round is ended all the same
            out.write(json.dumps(message) + "\n")
            out.flush()

    folder = StudyFolder(path)
    jobs, orders = folder.study.jobs, Orders()
    for label in orders:
        target = RunFolder(folder.run_path(label), tensorboard)
        try:
            run_job(jobs[label], Processes(), target, lambda line: say(round=line), lambda words: say(told=words))
        except Interrupted:
            return
        except (ValueError, OSError) as error:
            say(error=str(error))
            return
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
            raise
        orders.done()
        say(end=target.summary or {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--tensorboard" in sys.argv[2:])

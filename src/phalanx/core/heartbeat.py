# SPDX-License-Identifier: Apache-2.0
"""Signs of life from a long wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Heartbeat:
    """Says something when nothing has been said for a while; within `with`, it is the function that says lines.

    Args:
        say: prints a line.
        words: returns the line that a silence ends with; an empty one is not said.
        every_s: seconds of silence, > 0.
    """

    def __init__(self, say: Callable[[str], None], words: Callable[[], str], every_s: float = 30.0) -> None:
        self._say, self._words, self._every_s = say, words, every_s
        self._last, self._lock, self._end = time.monotonic(), threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def __call__(self, line: str) -> None:
        with self._lock:
            self._last = time.monotonic()
            self._say(line)

    def _run(self) -> None:
        while not self._end.wait(max(0.01, self._last + self._every_s - time.monotonic())):
            if time.monotonic() - self._last >= self._every_s and (line := self._words()):
                self(line)

# SPDX-License-Identifier: Apache-2.0
"""A folder's lock: one process at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(
    folder: Path, patience_s: float = float("inf"), on_wait: Callable[[str], None] = lambda words: None
) -> Iterator[int]:
    """Keeps other processes out of the folder; gives the open file, which holds it in child processes as well.

    Args:
        on_wait: called with a sentence if somebody else has it and has to be waited for.
    Raises:
        ValueError: somebody has it, and has not let go after `patience_s`.
    """
    with (folder / "lock").open("a") as file:
        until = time.monotonic() + patience_s
        if not (free := _locked(file.fileno())):
            on_wait(f"waiting for another process to leave {folder}")
        while not (free or _locked(file.fileno())):
            if time.monotonic() > until:
                raise ValueError(f"{folder} is being run by another process; wait until it ends, or stop it")
            time.sleep(0.1)
        yield file.fileno()


def _locked(file: int) -> bool:
    """Whether the file is now locked for this process and its children."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

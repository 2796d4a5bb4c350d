# SPDX-License-Identifier: Apache-2.0
"""A lock on a folder that one process at a time can hold."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def folder_lock(
    folder: Path,
    patience_s: float = float("inf"),
    on_wait: Callable[[str], None] = lambda words: None,
    name: str = "lock",
) -> Iterator[int]:
    """Holds the lock of a folder; yields the number of the open lock file, which child processes can keep open.

    Args:
        patience_s: seconds to wait for another process.
        on_wait: called with a sentence when another process holds the lock.
        name: of the file; locks with other names are other locks.
    Raises:
        ValueError: another process still holds the lock after `patience_s`.
    """
    with (folder / name).open("a") as file:
        deadline = time.monotonic() + patience_s
        if not (locked := _try_lock(file.fileno())):
            on_wait(f"waiting for another process to leave {folder}")
        while not (locked or _try_lock(file.fileno())):
            if time.monotonic() > deadline:
                raise ValueError(f"{folder} is being run by another process; wait until it ends, or stop it")
            time.sleep(0.1)
        yield file.fileno()


def _try_lock(file: int) -> bool:
    """Tries to lock a file for this process and its children; returns whether it did."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder."""
    if not (folder / "lock").exists():
        return False
    with (folder / "lock").open("a") as file:
        return not _try_lock(file.fileno())

# SPDX-License-Identifier: Apache-2.0
"""Room for rows that together may be larger than memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


@contextmanager
def large_rows(n: int, d: int, memory_bytes: int) -> Iterator[Tensor]:
    """Float32 rows (n, d), of any content, in memory or in a file without a name that ends with the context.

    The file lies in the folder for temporary files, which the environment variable TMPDIR sets. Where that is a disk in
    memory nothing is won.

    Args:
        memory_bytes: up to so many are in memory.
    Raises:
        ValueError: the disk has too little room.
    """
    size = 4 * n * d
    if size <= memory_bytes:
        yield torch.empty(n, d)
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{n} rows of {d:,} float32 take {size / 1e9:.3g} GB, more than memory_bytes={memory_bytes}, and {folder} "
            f"has {free / 1e9:.3g} GB left; free some, set TMPDIR to a larger disk, or raise memory_bytes"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        # the blocks now: a disk that fills up later would end the process without a word
        os.posix_fallocate(file.fileno(), 0, size)
        yield torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(n, d)))

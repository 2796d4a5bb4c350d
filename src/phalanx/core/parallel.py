# SPDX-License-Identifier: Apache-2.0
"""Independent pieces of work on several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

import torch

X = TypeVar("X")
Y = TypeVar("Y")


def parallel_map(work: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """work of each item, in order, on as many threads as torch uses; for work that lets other Python code run."""
    listed = list(items)
    threads = min(torch.get_num_threads(), len(listed))
    if threads <= 1:
        return [work(item) for item in listed]
    done: dict[int, Y] = {}
    turn = count()

    def share() -> None:
        while (i := next(turn)) < len(listed):
            done[i] = work(listed[i])

    # to wake a thread takes as long as many a piece: each takes the next one itself, and this thread is one of them
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share) for _ in range(threads - 1)]
        share()
    for other in others:
        other.result()
    return [done[i] for i in range(len(listed))]

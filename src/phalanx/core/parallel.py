# SPDX-License-Identifier: Apache-2.0
"""A map over independent pieces of work, on several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

import torch

X = TypeVar("X")
Y = TypeVar("Y")


def parallel_map(work: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """Calls `work` on each item, on as many threads as torch uses; results are in the order of the items.

    It pays where `work` releases the interpreter lock.
    """
    all_items = list(items)
    threads = min(torch.get_num_threads(), len(all_items))
    if threads <= 1:
        return [work(item) for item in all_items]
    results: dict[int, Y] = {}
    indices = count()

    def work_off() -> None:
        while (i := next(indices)) < len(all_items):
            results[i] = work(all_items[i])

    # waking a thread may take as long as an item: each thread takes the next item by itself, this thread as well
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work_off) for _ in range(threads - 1)]
        work_off()
    for other in others:
        other.result()
    return [results[i] for i in range(len(all_items))]

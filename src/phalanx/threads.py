# SPDX-License-Identifier: Apache-2.0
"""Independent pieces of work on several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

X = TypeVar("X")
Y = TypeVar("Y")


def side_by_side(work: Callable[[X], Y], items: Iterable[X]) -> list[Y]:
    """work of each item, in order, on as many threads as torch uses; for work that lets other Python code run."""
    listed = list(items)
    threads = min(torch.get_num_threads(), len(listed))
    if threads <= 1:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, listed))

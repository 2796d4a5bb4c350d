# SPDX-License-Identifier: Apache-2.0
"""Memory that is used again, and never while anybody looks at it."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

from phalanx import tables
from phalanx.tables import LEAST_BYTES, empty_rows
from phalanx.threads import side_by_side

D = LEAST_BYTES // 4  # one float32 row of the least size


@pytest.fixture(autouse=True)
def nothing_left():
    tables._free.clear()
    yield
    tables._free.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_tables_have_the_form_asked_for(dtype):
    for k, d in ((0, 7), (3, 0), (2, 5), (3, D)):
        made = empty_rows(k, d, torch.empty(0, dtype=dtype))
        assert made.shape == (k, d) and made.dtype == dtype and made.is_contiguous()
        assert made.numel() == 0 or made.data_ptr() % 64 == 0


def test_memory_is_used_again_once_nobody_looks_at_it():
    first = empty_rows(2, D, torch.empty(0))
    where = first.data_ptr()
    del first
    assert empty_rows(2, D, torch.empty(0)).data_ptr() == where


def test_any_view_keeps_the_memory():
    first = empty_rows(2, D, torch.empty(0)).fill_(1)
    view = first[1, 5:9].view(torch.int32)
    saved = view.clone()
    del first
    gc.collect()
    empty_rows(2, D, torch.empty(0)).fill_(2)
    assert torch.equal(view, saved)


def test_at_most_three_unused_blocks_are_kept_and_none_of_another_size():
    made = [empty_rows(1, D, torch.empty(0)) for _ in range(5)]
    made.clear()
    assert len(tables._free) == 3
    empty_rows(9, D, torch.empty(0))
    assert sum(block.nbytes for block in tables._free) <= 9 * LEAST_BYTES + 64


def test_threads_never_share_a_table():
    wrong = []

    def work(mark):
        for _ in range(30):
            table = empty_rows(1, D, torch.empty(0))
            table[0, ::4096] = mark
            if not bool((table[0, ::4096] == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_work_side_by_side_keeps_its_order_and_its_errors():
    assert side_by_side(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    assert side_by_side(lambda x: x, []) == []
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda x: 1 / x, [1, 0])

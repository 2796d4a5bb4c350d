# SPDX-License-Identifier: Apache-2.0
"""Memory that is used again, and never while anybody looks at it."""

from __future__ import annotations

import gc
import threading

import pytest
import torch

import phalanx as px
from phalanx.core import buffers as tables
from phalanx.core.buffers import MIN_BYTES, RowBuffer, empty_rows, stack_rows
from phalanx.core.codec import BadPayload, open_rows
from phalanx.core.parallel import parallel_map
from tests.cases import each

D = MIN_BYTES // 4  # one float32 row of the least size


@pytest.fixture(autouse=True)
def nothing_left():
    tables._free.clear()
    yield
    tables._free.clear()


@each("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
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
    assert sum(block.nbytes for block in tables._free) <= 9 * MIN_BYTES + 64


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
    assert parallel_map(lambda x: x * x, range(20)) == [x * x for x in range(20)]
    assert parallel_map(lambda x: x, []) == []
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda x: 1 / x, [1, 0])


# rows as they lie


def collected(rows, d, most=None):
    table = RowBuffer(len(rows) if most is None else most, d, torch.empty(0))
    for parts in rows:
        table.add(parts)
    return table.rows


@each("cut", [0, 3, 7])
@each("most", [4, 9])
def test_rows_that_lie_one_after_the_other_are_not_copied(cut, most):
    source = torch.randn(4, 7)
    rows = collected([[row[:cut], row[cut:]] for row in source], 7, most)
    assert rows.data_ptr() == source.data_ptr() and torch.equal(rows, source) and rows.is_contiguous()


def test_rows_are_put_together_without_a_copy_where_they_lie_so():
    source = torch.randn(4, 16)
    assert stack_rows(list(source), source[0]).data_ptr() == source.data_ptr()
    assert torch.equal(stack_rows([source[2], source[0]], source[0]), source[[2, 0]])
    assert stack_rows([], source[0]).shape == (0, 16)


def test_a_sum_leaves_the_rows_of_silent_workers_as_they_are():
    source = torch.randn(3, 16)
    before = source.clone()
    out, _ = px.reduce(px.codecs.dense())(
        px.Stack.of(source), None, px.Round(world=px.LocalCollective(3), absent=frozenset({1}))
    )
    assert torch.equal(source, before)
    torch.testing.assert_close(out.rows[0], before[[0, 2]].mean(dim=0))


wide, narrow = torch.randn(6, 16), torch.randn(6, 16, dtype=torch.float64)


@each(
    "rows",
    [
        list(wide[::2]),
        [*wide[[0, 1, 2]], wide[3]],
        [wide[1], wide[0]],
        [wide[0], wide[0]],
        [wide[0], wide[1], wide[3]],
        list(wide.flatten()[1:33].reshape(2, 16)),  # one that is not aligned as a table
        list(narrow),
        list(torch.randn(16, 3).T),
    ],
)
def test_other_rows_are_copied(rows):
    made = collected([[row] for row in rows], 16)
    assert made.is_contiguous() and torch.equal(made, torch.stack([row.float() for row in rows]))
    assert not {row.data_ptr() for row in rows} & {row.data_ptr() for row in made}


def test_tables_of_no_rows_or_no_columns():
    assert collected([], 5).shape == (0, 5)
    assert collected([[torch.empty(0)], [torch.empty(0), torch.empty(0)]], 0).shape == (2, 0)


def test_the_simulation_hands_over_its_rows_and_copies_those_around_a_bad_one():
    sent = px.Stack.of(torch.randn(5, 16))
    payloads = [{"values": row, "weight": torch.ones(1, dtype=torch.float64)} for row in sent.rows]
    sources = [(i,) for i in range(5)]
    opened = open_rows(px.codecs.dense(), payloads, sources, sent)
    assert opened.rows.data_ptr() == sent.rows.data_ptr() and opened.erased == 0
    for bad in (BadPayload("late"), {"values": torch.ones(3)}):
        opened = open_rows(px.codecs.dense(), [*payloads[:2], bad, *payloads[3:]], sources, sent)
        assert opened.ids == (0, 1, 3, 4) and opened.erased == 1 and torch.equal(opened.rows, sent.rows[[0, 1, 3, 4]])
        assert [note.worker for note in opened.notes if note.kind == "excluded"] == [2]


@pytest.mark.parametrize("scheme", ["chain(gather(dense()), mean())", "chain(vote(dense(), r=1), median())"])
def test_no_stage_writes_into_the_rows_that_were_sent(scheme):
    rows = torch.randn(5, 64)
    before = rows.clone()
    px.parse(scheme)(px.Stack.of(rows), None, px.Round(world=px.LocalCollective(5)))
    assert torch.equal(rows, before)

# SPDX-License-Identifier: Apache-2.0
"""Rows that are decoded when they are read: what a rule decodes, and what it holds in memory."""

import tracemalloc

import pytest
import torch

import phalanx as px
from phalanx.core.coded_rows import CodedRows
from phalanx.core.stack import Stack
from tests.cases import each


def received(codec, n=5, d=1000, rows=None, byzantine=(), **more):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(1)) if rows is None else rows
    world = px.Round(world=px.LocalCollective(len(rows)), byzantine=frozenset(byzantine))
    return px.gather(px.parse(codec), **more)(Stack.of(rows), None, world)[0]


def plain(stack):
    """The same rows as a tensor that is decoded."""
    return stack.with_rows(stack.rows.clone(), gated=True)


def run(rule, stack):
    return px.parse(rule)(stack, None, px.Round(world=px.LocalCollective(len(stack.rows))))[0].rows


def test_a_table_has_its_form_before_it_is_decoded():
    rows = received("qsgd()").rows
    assert isinstance(rows, CodedRows) and not rows.is_read
    assert rows.shape == (5, 1000) and len(rows) == 5 and rows.dtype == torch.float32 and rows.dim() == 2
    assert rows.new_zeros(3).shape == (3,) and rows.device.type == "cpu" and rows.numel() == 5000
    assert not rows.is_read
    total = rows + 0  # any other operation decodes it
    assert rows.is_read and type(total) is torch.Tensor and torch.equal(total, rows.read())


@each("rule", ("mean()", "median()", "trimmed_mean(f=1)", "majority()", "meamed(f=1)"))
@each("codec", ("qsgd()", "sign()", "top_k(ratio=0.05)", "half()", "terngrad(clip=inf)"))
def test_rules_of_coordinates_need_no_table(rule, codec):
    """These rules read each column once, so they hold some columns of all rows at a time."""
    stack = received(codec, d=70_000)
    result = run(rule, stack)
    assert isinstance(stack.rows, CodedRows) and not stack.rows.is_read
    assert torch.equal(result, run(rule, plain(stack)))


@each("n", (1, 2, 3, 4, 7, 16, 17, 300))
def test_votes_are_counted_in_binary(n):
    """Any number of voters, ties, and rows that end within a byte or a block."""
    for d in (1, 7, 8, 9, 513, 4096, 9001):
        stack = received("sign()", n, d)
        result = run("majority()", stack)
        assert isinstance(stack.rows, CodedRows) and not stack.rows.is_read
        assert torch.equal(result[0], stack.rows.read().sign().sum(dim=0).sign()), d


@each("rule", ("krum(f=1)", "geometric_median()", "centered_clip(tau=3.0)", "nnm(f=1)"))
def test_rules_of_rows_give_the_same_bits(rule):
    first, second = (received("qsgd()", d=5000) for _ in range(2))
    assert torch.equal(run(rule, first), run(rule, plain(second)))


def test_a_row_that_turns_out_bad_is_decoded_alone_and_left_out():
    rows = torch.randn(5, 3000)
    rows[3, 17] = torch.nan
    stack = received("qsgd()", rows=rows)
    assert isinstance(stack.rows, CodedRows) and not stack.rows.is_read
    assert stack.ids == (0, 1, 2, 4) and stack.erased == 1
    assert next(n.reason for n in stack.notes if n.kind == "false_row") == "NaN"
    assert torch.equal(run("mean()", stack), run("mean()", plain(stack)))


def test_a_scale_beyond_the_limit_is_no_reason_if_no_entry_is():
    """The bound of a payload is above the limit and its entries are not: it is admitted, as when rows are decoded."""
    rows = torch.full((3, 512), 10.0)
    stack = received("qsgd(bits=8)", rows=rows, gate=px.gate(limit=20.0))
    # the scale is the norm, 226; one level is 0.89
    assert isinstance(stack.rows, CodedRows)
    assert stack.ids == (0, 1, 2) and min(stack.rows.bounds) > 20


def test_columns_that_are_read_again_and_again_are_decoded_once():
    stack = received("qsgd()", d=2000)
    assert isinstance(stack.rows, CodedRows)
    for _ in range(3):
        for start in range(0, 2000, 500):
            _ = stack.rows[:, start : start + 500]
    assert not stack.rows.is_read
    _ = stack.rows[:, :500]
    assert stack.rows.is_read


@pytest.mark.parametrize("codec", ["qsgd()", "terngrad()", "sign()", "top_k(ratio=0.01)", "half()"])
def test_a_mean_holds_no_more_than_two_rows(codec):
    """Rows beyond 32 MiB come from numpy, whose memory is traced."""
    n, d = 8, 9_000_000
    coded = px.parse(codec)
    layout = px.Layout.flat(d)
    row = torch.randn(d)
    payload = coded.encode(row, layout, {}, lambda: torch.Generator().manual_seed(0))[0]
    payload = {**payload, "weight": torch.ones(1, dtype=torch.float64)}
    wire, empty = px.gather(coded), Stack.of(row.reshape(1, -1)).pick([])

    class Arrived(px.LocalCollective):
        def gather(self, payloads: object, limit_bytes: int) -> list[px.Payload | px.BadPayload]:
            return [payload for _ in range(n)]

    round = px.Round(world=Arrived(n))
    tracemalloc.start()
    try:
        out = px.aggregators.mean()(wire.receive([], empty, round), None, round)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2.1 * row.nbytes, peak / row.nbytes
    torch.testing.assert_close(out.rows[0], coded.decode({k: v for k, v in payload.items() if k != "weight"}, layout))

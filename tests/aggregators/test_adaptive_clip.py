# SPDX-License-Identifier: Apache-2.0
"""Clipping at the round's own norm against its definition."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.stack import Stack
from tests.cases import each

RULES = st.builds(px.aggregators.adaptive_clip, st.sampled_from(["mean", "median"]), st.sampled_from([0.25, 1.0, 3.0]))
TOLERANCE = {torch.float16: 2e-3, torch.float32: 1e-6, torch.float64: 1e-12}


def clipped(rule, rows, layout=None):
    stack = replace(Stack.of(rows, layout), received=True)
    return rule(stack, None, px.Round(world=px.LocalCollective(max(1, len(rows)))))[0]


@st.composite
def tables(draw):
    """Rows of norms far apart, zeros among them, in numbers that are small or large for their type."""
    n, d = draw(st.integers(1, 9)), draw(st.integers(0, 40))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    unit = draw(st.sampled_from([1.0] if dtype == torch.float16 else [1e-30, 1.0, 1e15]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    sizes = torch.tensor([draw(st.sampled_from([0.0, 0.01, 1.0, 1.0, 100.0])) for _ in range(n)], dtype=torch.float64)
    return (unit * sizes[:, None] * torch.randn(n, d, generator=rng, dtype=torch.float64)).to(dtype)


def norm(row):
    return math.hypot(*row.double().tolist())


@given(RULES, tables())
def test_rows_are_cut_to_the_usual_norm_of_the_round(rule, rows):
    norms = [norm(row) for row in rows]
    most = rule.factor * (statistics.fmean if rule.of == "mean" else statistics.median)(norms)
    before = rows.clone()
    out = clipped(rule, rows)
    assert out.rows.shape == rows.shape and out.rows.dtype == rows.dtype and rows.equal(before)
    for row, old, length in zip(out.rows, rows, norms, strict=True):
        if length <= most * (1 - 1e-9):
            assert row.equal(old)
        else:
            expected = old.double() * (min(1.0, most / length) if length else 1.0)
            # the least float16 above zero
            atol = TOLERANCE[rows.dtype] * length + (6e-8 if rows.dtype == torch.float16 else 0)
            torch.testing.assert_close(row.double(), expected, rtol=0, atol=atol)


def test_rows_that_are_all_zero_stay():
    for of in ("mean", "median"):
        assert not clipped(px.aggregators.adaptive_clip(of), torch.zeros(4, 3)).rows.any()


def test_one_row_is_as_long_as_all_rows_are():
    row = torch.tensor([[3.0, 4.0]])
    assert clipped(px.aggregators.adaptive_clip(), row).rows.equal(row)
    torch.testing.assert_close(clipped(px.aggregators.adaptive_clip(factor=0.5), row).rows, row / 2)


@pytest.mark.parametrize("of", ["mean", "median"])
@each("bad", [torch.nan, torch.inf, 1e30])
def test_what_the_gate_keeps_out_has_no_norm_in_the_round(of, bad):
    rows = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [bad, 1.0]])
    out = clipped(px.aggregators.adaptive_clip(of), rows)
    assert out.ids == (0, 1, 2) and out.rows.norm(dim=1).tolist() == pytest.approx([1, 2, 2])


def test_installed_values_neither_count_nor_change():
    layout = px.Layout(("w", "running_mean"), (torch.Size([2]), torch.Size([2])), 1)
    rows = torch.tensor([[3.0, 4.0, 1e6, -1.0], [0.0, 1.0, 5.0, 2.0]])
    out = clipped(px.aggregators.adaptive_clip(), rows, layout)
    assert out.rows[:, 2:].equal(rows[:, 2:])
    assert out.rows[:, :2].norm(dim=1).tolist() == pytest.approx([3, 1])


def test_the_median_is_no_attackers_to_move_and_the_mean_is():
    rng = torch.Generator().manual_seed(3)
    honest = torch.randn(7, 50, generator=rng)
    longest = float(honest.norm(dim=1).max())
    for size in (1e3, 1e12):
        rows = torch.cat([honest, size * torch.randn(4, 50, generator=rng)])
        assert float(clipped(px.aggregators.adaptive_clip("median"), rows).rows.norm(dim=1).max()) <= longest * (
            1 + 1e-6
        )
        assert float(clipped(px.aggregators.adaptive_clip("mean"), rows).rows.norm(dim=1).max()) > size / 10


def test_it_stands_before_a_rule_in_a_chain():
    scheme = px.parse("chain(gather(dense()), adaptive_clip(of='median'), mean(), noise(std=0.0))")
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [100.0, 0.0]])
    out, _ = scheme(Stack.of(rows), None, px.Round(world=px.LocalCollective(3)))
    assert out.rows[0].tolist() == pytest.approx([1.0, 0.0])
    assert px.aggregators.adaptive_clip(of="median").aggregate(rows).norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="finite factor > 0"):
        px.aggregators.adaptive_clip(factor=0.0)

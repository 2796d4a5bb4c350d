# SPDX-License-Identifier: Apache-2.0
"""What may enter an aggregator."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.gate import admit
from phalanx.core.stack import Stack
from tests.cases import each


def gated(rows, weights=None, gate=None):
    stack = Stack.of(torch.as_tensor(rows))
    if weights is not None:
        stack = replace(stack, weights=torch.tensor(weights, dtype=torch.float64))
    return (gate or px.gate()).admit(stack)


@each("bad", [torch.nan, torch.inf, -torch.inf, 1.1e18, -1e30])
@each("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gate_excludes_bad_rows(bad, dtype):
    rows = torch.ones(4, 5, dtype=dtype)
    rows[2, 3] = bad
    out = gated(rows)
    assert out.ids == (0, 1, 3) and out.erased == 1 and out.gated
    assert {note.kind for note in out.notes} == {"excluded", "false_row"}
    assert all(note.worker == 2 and note.reason for note in out.notes if note.kind == "excluded")
    rows[2, 0] = torch.nan
    assert gated(rows).notes[0].reason == "NaN"


def test_the_gate_admits_what_is_at_the_limit():
    assert len(gated([[1e18, -1e18]]).rows) == 1
    assert len(gated([[10.0], [10.1]], gate=px.gate(limit=10)).rows) == 1
    assert gated(torch.zeros(3, 0)).ids == (0, 1, 2) and gated(torch.zeros(0, 3)).rows.shape == (0, 3)


@each("weight", [torch.nan, torch.inf, -torch.inf, 0.0, -1.0, 1e12])
def test_the_gate_excludes_absurd_weights(weight):
    out = gated(torch.ones(5, 2), [10.0, 20.0, weight, 30.0, 20.0])
    assert out.ids == (0, 1, 3, 4) and "weight" in out.notes[0].reason


def test_the_gate_bounds_weights_by_policy():
    claimed = [1.0, 1.0, 2.0, 500.0]
    assert gated(torch.ones(4, 1), claimed).weights.tolist() == [1, 1, 1, 1]
    assert gated(torch.ones(4, 1), claimed, px.gate(max_weight=2)).weights.tolist() == [1, 1, 2, 2]
    assert gated(torch.ones(4, 1), claimed, px.gate(weights="equal")).weights.tolist() == [1, 1, 1, 1]
    assert gated(torch.ones(4, 1), claimed, px.gate(weights="trusted")).weights.tolist() == claimed


def test_a_gated_stack_is_not_searched_again_and_a_changed_one_is():
    stack = gated(torch.ones(2, 2))
    assert admit(stack) is stack
    assert not stack.with_rows(stack.rows).gated


@each("text", ["gate(limit=0.0)", "gate(limit=nan)", "gate(limit=inf)", "gate(max_weight=0.5)"])
def test_gates_that_gate_nothing_are_refused(text):
    with pytest.raises(ValueError, match="gate needs"):
        px.parse(text)

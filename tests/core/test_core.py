# SPDX-License-Identifier: Apache-2.0
"""Layout, stack, round, chain, registry."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.core.registry import register
from phalanx.core.stack import Stack
from phalanx.core.stage import check_scheme, join_notes, memory_key
from tests.examples import LAYOUT, N, honest, round_of


@given(st.lists(st.lists(st.integers(0, 3), max_size=3), max_size=5), st.integers(0, 2))
def test_split_and_join_are_inverse(shapes, k):
    layout = px.Layout(tuple(f"t{i}" for i in range(len(shapes))), tuple(map(torch.Size, shapes)))
    rows = torch.arange(float(k * layout.d)).reshape(k, layout.d)
    parts = layout.split(rows)
    assert [tuple(p.shape) for p in parts.values()] == [(k, *s) for s in shapes]
    if shapes:
        assert layout.join(parts).equal(rows)
    if k:
        assert layout.join(layout.split(rows[0])).equal(rows[0])


def test_split_gives_views_and_join_a_copy():
    row = torch.zeros(LAYOUT.d)
    parts = LAYOUT.split(row)
    parts["a.bias"].fill_(1.0)
    assert row.sum() == 5
    LAYOUT.join(parts).fill_(2.0)
    assert row.sum() == 5


def test_the_layout_of_a_model_puts_its_statistics_behind_its_directions():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    for p in model[2].parameters():
        p.requires_grad = False
    layout = px.Layout.of(model)
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    assert (layout.d, layout.stepped, layout.num_installed) == (16, 12, 2)
    assert layout.head.names == layout.names[:4] and layout.head.d == 12 and layout.head.head is layout.head
    with pytest.raises(ValueError, match="dtype"):
        px.Layout.of(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))


def test_layout_errors():
    with pytest.raises(ValueError, match="one shape a name"):
        px.Layout(("a",), ())
    with pytest.raises(ValueError, match="different names"):
        px.Layout(("a", "a"), (torch.Size([]), torch.Size([])))
    with pytest.raises(ValueError, match="length 3 do not fit a layout of length 24"):
        LAYOUT.split(torch.zeros(3))
    with pytest.raises(ValueError, match=r"no tensor for a\.bias"):
        LAYOUT.join({n: p for n, p in LAYOUT.split(torch.zeros(24)).items() if n != "a.bias"})


def test_picking_merging_and_erasing_keep_the_books():
    stack = honest(n=6)
    picked = stack.pick([4, 1])
    assert picked.ids == (4, 1) and picked.weights.tolist() == [3, 3] and picked.rows.equal(stack.rows[[4, 1]])
    assert stack.pick(range(6)) is stack
    merged = stack.merged(stack.rows[:2], [(5, 0), (2,)])
    assert merged.sources == ((0, 5), (2,)) and merged.weights.tolist() == [6, 4]
    assert stack.merged(stack.rows[:0], []).weights.shape == (0,)
    one = picked.one(stack.rows[0])
    assert one.sources == ((1, 4),) and one.weights.tolist() == [6] and one.rows.shape == (1, LAYOUT.d)
    left = merged.erase({0: "a reason"})
    assert left.erased == 1 and left.sources == ((2,),)
    assert [(n.kind, n.worker, n.reason) for n in left.notes] == [
        ("excluded", 0, "a reason"),
        ("excluded", 5, "a reason"),
    ]
    assert left.faults_left(3) == 2 and left.faults_left(0) == 0


@pytest.mark.parametrize("bad", [(0,), (1, 4), (5,), (0, 1, 2, 3, 4, 5), (3,)])
def test_erasing_in_place_is_erasing_and_takes_no_memory(bad):
    stack, reasons = honest(n=6), dict.fromkeys(bad, "a reason")
    expected = stack.erase(reasons)
    given = replace(stack, rows=stack.rows.clone())
    kept = given.erase(reasons, in_place=True)
    assert kept.rows.equal(expected.rows) and (kept.ids, kept.notes) == (expected.ids, expected.notes)
    assert kept.weights.equal(expected.weights)
    assert kept.rows.untyped_storage().data_ptr() == given.rows.untyped_storage().data_ptr()


def test_join_notes_takes_what_is_new():
    stack = Stack.of(torch.zeros(2, 1)).note([px.Note("a")])
    others = [stack.note([px.Note("b")]), stack.note([px.Note("c")])]
    assert [n.kind for n in join_notes(stack, others).notes] == ["a", "b", "c"]


def test_streams_are_their_own_and_repeat():
    base = round_of()
    keys = [
        base.rng(),
        base.rng(0),
        base.rng(1),
        base.rng(group=0),
        base.rng(group=1),
        round_of(index=1).rng(0),
        round_of(seed=1).rng(0),
        base.child(0).rng(0),
        base.child(0).child(1).rng(0),
        base.child(1).child(0).rng(0),
    ]
    assert len({torch.rand(1, generator=g).item() for g in keys}) == len(keys)
    assert torch.rand(3, generator=base.rng(2)).equal(torch.rand(3, generator=round_of().rng(2)))


def test_chains_are_flattened_and_their_state_is_kept_by_place():
    scheme = px.chain(px.momentum(0.5), px.chain(px.momentum(0.5), px.clip(9.0)))
    assert len(scheme.stages) == 3 and scheme.scope == "vector" and px.chain().scope == "coordinate"
    _, state = scheme(honest(), None, round_of())
    assert set(state) == {"0", "1"} and set(state["0"]) == {memory_key(i, False) for i in range(N)}
    assert memory_key(None, True) == "row:all"


def test_schemes_are_checked_before_a_run():
    check_scheme(px.parse("chain(gather(dense()), krum(f=2))"), 7)
    check_scheme(px.parse("reduce(half())"), 1)
    for text, sentence in (
        ("chain(gather(dense()), krum(f=2))", "n=6"),
        ("chain(gather(dense()))", "ends with 6 rows"),
        ("mean()", "0 times"),
        ("chain(gather(dense()), gather(dense()), mean())", "2 times"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_scheme(px.parse(text), 6)
    with pytest.raises(ValueError, match="different assignments"):
        px.parse("chain(gather(dense()), group_vote(r=3), group_vote(r=5))").assign(15)


def test_a_name_is_registered_once():
    register("mean", "aggregator", px.aggregators.mean)
    with pytest.raises(ValueError, match="registered already"):
        register("mean", "aggregator", px.aggregators.median)

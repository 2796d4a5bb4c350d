# SPDX-License-Identifier: Apache-2.0
"""One semantics of erasures for vote, group_vote and repetition: who counts, who is named, what is flagged."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import phalanx as px
from tests.cases import each

SCHEMES = {
    "vote": "vote(dense(), r={r}, none='exclude')",
    "group vote": "chain(gather(dense()), group_vote(r={r}, none='exclude'))",
    "repetition": "chain(gather(dense()), repetition(r={r}))",
}
D = 5


def run(name, rows, r, byzantine=(), absent=()):
    stage = px.parse(SCHEMES[name].format(r=r))
    round = px.Round(world=px.LocalCollective(len(rows)), byzantine=frozenset(byzantine), absent=frozenset(absent))
    return stage(px.Stack.of(rows), None, round)[0]


def named(stack, kind):
    return {note.worker for note in stack.notes if note.kind == kind}


def total(stack, kind):
    return sum(note.value for note in stack.notes if note.kind == kind)


def copies(n):
    """Rows of one group."""
    return torch.arange(1.0, D + 1).repeat(n, 1)


@each("name", SCHEMES)
def test_rows_that_are_not_finite_are_erasures_and_the_rest_votes(name):
    rows = copies(5)
    rows[[0, 2, 3]] = float("nan")
    out = run(name, rows, 5, byzantine={0, 2, 3})
    assert out.rows.equal(copies(1)) and out.erased == 0
    assert named(out, "excluded") == {0, 2, 3} and named(out, "outvoted") == set()
    assert total(out, "unprotected") == 1 and total(out, "lost_groups") == 0


@each("name", SCHEMES)
def test_the_word_of_a_lone_survivor_is_flagged(name):
    out = run(name, copies(5), 5, absent={0, 1, 3, 4})
    assert out.rows.equal(copies(1)) and total(out, "unprotected") == 1
    assert total(run(name, copies(5), 5, absent={0, 3}), "unprotected") == 0
    # whoever asks for no redundancy is not told in every round that there is none
    if name != "repetition":
        assert total(run(name, copies(2), 2), "unprotected") == total(run(name, copies(1), 1), "unprotected") == 0


@each("name", SCHEMES)
def test_a_negative_zero_is_no_lie(name):
    rows = copies(5)
    rows[:, 1] = torch.tensor([0.0, -0.0, 0.0, -0.0, 0.0])
    outs = [run(name, rows.roll(turn, dims=0), 5) for turn in range(5)]
    for out in outs:
        assert named(out, "outvoted") == set() and out.erased == 0
        # the same bits whoever stands for the group
        assert out.rows.view(torch.int32).equal(outs[0].rows.view(torch.int32))


@each("name", SCHEMES)
def test_a_group_of_whom_nobody_is_left_is_erased_or_raises(name):
    rows = torch.full((5, D), float("inf"))
    if name != "vote":
        with pytest.raises(px.TooFewRows, match="5 were left out"):
            run(name, rows, 5)
    else:
        out = run(name, rows, 5)
        assert len(out.rows) == 0 and out.erased == 1 and named(out, "excluded") == set(range(5))


class Behaviour:
    HONEST, ABSENT, NAN, HUGE, SHARED_LIE, OWN_LIE = range(6)


@st.composite
def groups(draw):
    size = draw(st.sampled_from((1, 3, 4, 5, 7)))
    what = draw(st.lists(st.sampled_from(range(6)), min_size=size, max_size=size))
    return what


@settings(max_examples=150, deadline=None)
@given(what=groups(), name=st.sampled_from(sorted(SCHEMES)))
def test_within_the_tolerance_the_honest_row_and_beyond_it_a_flag(what, name):
    """2 l + e <= g - 1 gives the honest row and accuses nobody honest; beyond that, a wrong row is flagged."""
    g = len(what)
    rows = copies(g)
    for worker, kind in enumerate(what):
        if kind == Behaviour.NAN:
            rows[worker, 2] = float("nan")
        elif kind == Behaviour.HUGE:
            rows[worker] = 1e30
        elif kind == Behaviour.SHARED_LIE:
            rows[worker] = -9.0
        elif kind == Behaviour.OWN_LIE:
            rows[worker] = 100.0 + worker
    absent = {i for i, kind in enumerate(what) if kind == Behaviour.ABSENT}
    liars = {i for i, kind in enumerate(what) if kind >= Behaviour.SHARED_LIE}
    gone = {i for i, kind in enumerate(what) if kind in (Behaviour.ABSENT, Behaviour.NAN, Behaviour.HUGE)}
    honest = set(range(g)) - liars - gone
    r = g if g % 2 or name != "repetition" else g - 1
    try:
        out = run(name, rows, r, byzantine=liars | gone, absent=absent)
    except px.TooFewRows as error:
        assert 2 * len(liars) + len(gone) > g - 1
        assert not {n.worker for n in error.notes if n.kind == "outvoted"} & honest
        return
    # of rows that no majority holds, digests do not show that they are none
    unseen = gone & named(out, "outvoted") if name == "vote" else set()
    assert named(out, "excluded") == gone - unseen
    if 2 * len(liars) + len(gone) <= g - 1:
        assert out.rows.equal(copies(1)) and not named(out, "outvoted") & honest
        assert named(out, "outvoted") == liars | unseen
    elif len(out.rows) == 0:
        assert out.erased == 1 and total(out, "undecided") == 1
    elif not out.rows.equal(copies(1)):
        assert total(out, "lost_groups") == 1 or total(out, "unprotected") == 1


@each("how", ["short", "dtype", "random", "weight"])
def test_who_sends_another_payload_than_its_digest_is_erased_and_the_rest_votes(how):
    """Two of five echo the honest digest and send another payload; a third lies."""
    rows = copies(5)
    rows[4] = 7.0
    stage = px.parse(f"vote(dense(), r=5, forge=malformed('{how}'))")
    round = px.Round(world=px.LocalCollective(5), byzantine=frozenset({0, 1}))
    out, _ = stage(px.Stack.of(rows), None, round)
    assert out.rows.equal(copies(1)) and named(out, "excluded") == {0, 1} and named(out, "outvoted") == {4}


def test_the_weights_of_a_refused_payload_are_refused_for_all_that_hold_it():
    stack = px.Stack.of(copies(5))
    weights = stack.weights.clone()
    weights[[0, 1, 2]] = -1.0
    stage = px.parse("vote(dense(), r=5)")
    out, _ = stage(replace(stack, weights=weights), None, px.Round(world=px.LocalCollective(5)))
    assert out.rows.equal(copies(1)) and named(out, "excluded") == {0, 1, 2} and out.weights.tolist() == [1.0]


def test_a_vote_that_leaves_no_row_loses_the_round_and_nothing_more():
    scheme = px.parse("chain(gaussian(), gather(dense()), group_vote(r=3, none='exclude'))")
    run = px.Run(
        px.data.digits(),
        px.models.mlp((4,)),
        (px.Phase(px.training.gradient(batch=30), scheme, px.optim.sgd(0.1), rounds=3),),
        workers=3,
        byzantine=px.adversary.workers((0, 1, 2)),
    )
    summary = px.train(run).summary()
    assert summary["lost_rounds"] == 3

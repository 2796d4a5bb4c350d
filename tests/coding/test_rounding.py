"""Votes that rounding spoils are told from votes that liars spoil."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.coding.majority_vote import by_equality
from phalanx.coding.rounding_notice import NEAR, rounding_notes, tolerance
from phalanx.coding.vote import SKETCH
from phalanx.core.packing import pack
from tests.cases import each
from tests.examples import in_order, round_of

SCHEMES = (
    "vote(dense(), r=3, none='exclude')",
    "vote(half('bf16'), r=3, none='exclude')",
    "chain(gather(dense()), group_vote(r=3, none='exclude'))",
)


def spread(n, ids=(0,)):
    """A world of n workers of which other processes play some, and whose messages all arrive."""
    return px.LocalCollective(n, ids)


def first(n, byzantine=(), world=None):
    return replace(round_of(n, byzantine=frozenset(byzantine), world=world or spread(n)), is_first=True)


def rows_of(n, r, d=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n // r, d, generator=generator).repeat_interleave(r, dim=0)


def nudged(rows, workers, size):
    """Each of these rows is off by a relative distance of its own, of about that size."""
    rows = rows.clone()
    for k, worker in enumerate(workers):
        noise = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(90 + k))
        rows[worker] += size * noise * rows[worker].norm() / noise.norm()
    return rows


def notices(scheme, rows, round):
    stack, _ = in_order(px.parse(scheme))(px.Stack.of(rows), None, round)
    return [note.reason for note in stack.notes if note.kind == "notice"]


@pytest.mark.parametrize("scheme", SCHEMES)
@each(("size", "told"), [(3e-7, True), (1e-5, True), (4e-3, True), (0.1, False), (2.0, False)])
def test_small_differences_are_told_and_large_ones_are_not(scheme, size, told):
    if "bf16" in scheme and size < 1e-3:
        size = 2e-3  # what this codec does not round away
    found = notices(scheme, nudged(rows_of(9, 3), (4, 5), size), first(9))
    assert len(found) == told
    for sentence in found:
        assert "between worker 3 and worker 4 and worker 5; write vote(..., rtol=" in sentence


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_rows_later_rounds_and_single_processes_are_silent(scheme):
    rows = rows_of(9, 3)
    odd = nudged(rows, (1, 5), 3e-3)
    assert notices(scheme, rows, first(9)) == []
    assert notices(scheme, odd, first(9)) != []
    assert notices(scheme, odd, replace(first(9), is_first=False)) == []
    assert notices(scheme, odd, first(9, world=px.LocalCollective(9))) == []
    # a drill's liars are no hardware, however small their lies
    assert notices(scheme, odd, first(9, byzantine=(1, 5))) == []
    assert notices(scheme.replace("r=3", "r=3, rtol=1e-6"), odd, first(9)) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_looking_changes_no_bit_and_no_meter(scheme):
    rows = nudged(nudged(rows_of(9, 3), (1, 5), 3e-3), (7,), 1.0)
    (looking, _), (not_looking, _) = (
        px.parse(scheme)(px.Stack.of(rows), None, round) for round in (first(9), replace(first(9), is_first=False))
    )
    assert looking.rows.equal(not_looking.rows) and looking.sources == not_looking.sources
    kinds = {"bytes", "outvoted", "excluded", "undecided", "lost_groups"}
    assert [n for n in looking.notes if n.kind in kinds] == [n for n in not_looking.notes if n.kind in kinds]


def test_a_liar_hides_no_difference_between_others():
    rows = nudged(rows_of(6, 3), (1,), 1e-6)
    rows[2] = math.inf
    rows[3] *= -5
    (found,) = notices(SCHEMES[0], rows, first(6))
    assert "between worker 0 and worker 1; write" in found
    (found,) = notices(SCHEMES[0], nudged(rows_of(15, 3), range(1, 15, 3), 1e-6), first(15))
    assert "between workers 0, 2 and worker 1, between workers 3, 5 and worker 4, " in found
    assert "between workers 6, 8 and worker 7, and in 2 groups more; write" in found


@each("shown", [torch.zeros(3), torch.zeros(257), None, torch.full((257,), math.nan).double()])
def test_a_false_sketch_stops_nothing(shown):
    """What is malformed is an erasure; numbers and silence are not even that."""
    vote, rows, round = in_order(px.parse("vote(dense(), r=3)")), rows_of(6, 3), first(6)
    stack = px.Stack.of(nudged(rows, (1, 2), 1e-6))
    uploads, _ = vote.upload(stack, None, round)
    assert all(len(pack(upload.now)) < 4096 for upload in uploads)
    if shown is None:
        del uploads[1].now[SKETCH]
    else:
        uploads[1].now[SKETCH] = shown
    out = vote.receive(uploads, stack, round)
    malformed = shown is not None and shown.dtype != torch.float64
    assert {n.worker for n in out.notes if n.kind == "excluded"} == ({1} if malformed else set())
    (notice,) = [n.reason for n in out.notes if n.kind == "notice"]
    assert "between worker 0 and worker 2; write" in notice


@given(st.floats(1e-12, NEAR))
def test_the_tolerance_has_head_room_and_is_one_that_votes_take(distance):
    rtol = tolerance(distance)
    assert 10 * distance <= rtol * (1 + 1e-9) <= 0.1 * (1 + 1e-9)
    assert rtol == pytest.approx(max(1e-5, 10.0 ** math.ceil(math.log10(10 * distance) - 1e-9)))
    assert px.parse(f"vote(dense(), r=3, rtol={rtol:.0e})").rtol == pytest.approx(rtol)


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5), st.sets(st.integers(0, 29)))
def test_a_notice_needs_two_near_rows_of_honest_members(held, liars):
    """Members hold 0 or 1, which are near, or 2 or 3, which are far from everything."""
    members = [[6 * g + i for i in range(len(row))] for g, row in enumerate(held)]
    have = {w: x for ws, row in zip(members, held, strict=True) for w, x in zip(ws, row, strict=True)}

    def same(a, b):
        return have[a] == have[b]

    def apart(a, b):
        return 1e-6 if {have[a], have[b]} == {0, 1} else math.inf

    found = rounding_notes([by_equality(ws, same) for ws in members], same, apart, first(30, byzantine=liars))
    honest = [{have[w] for w in ws if w not in liars} for ws in members]
    assert bool(found) == any({0, 1} <= row for row in honest)
    assert all(note.kind == "notice" and "1.0e-06" in note.reason for note in found)

# SPDX-License-Identifier: Apache-2.0
"""The vote on digests: what wins, who is named, and what crosses the wire."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.coding.vote import _digest, _unsigned
from phalanx.core.codec import WEIGHT
from phalanx.core.packing import digest, pack, unpack
from phalanx.distributed.backend import Loopback
from tests.cases import each
from tests.examples import honest, in_order, round_of

N = 9


def run(scheme, rows, byzantine=(), absent=(), world=None, index=0):
    stage = in_order(px.parse(scheme))
    stack = px.Stack.of(rows)
    round = replace(round_of(len(rows), index, byzantine=frozenset(byzantine), world=world), absent=frozenset(absent))
    return stage(stack, None, round)[0]


def groups(n=N, r=3, d=50):
    """Rows that are equal in each group."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n // r, d, generator=generator).repeat_interleave(r, dim=0)


def kinds(stack, kind):
    return {note.worker for note in stack.notes if note.kind == kind}


def test_digest_without_signs_of_zeros_is_that_of_the_whole():
    """The digest is taken piece by piece; what is read must be all entries, in their order."""
    row = torch.randn(600_001)
    row[::1000] = -0.0
    for part in (row, row.half(), row.double()[::3], row[:0], torch.arange(700_000)):
        plain = part + 0
        payload = {"a": part, "b": torch.tensor(3.0), "c": torch.zeros(0, 4)}
        assert _digest(payload) == digest({**payload, "a": plain})
        opened = _unsigned(payload)["a"]
        assert torch.equal(opened, plain) and not (opened.double().signbit() & (opened == 0)).any()
        # nothing is copied without need
        assert _unsigned({"a": plain})["a"] is plain


def test_digests_are_equal_exactly_for_equal_payloads():
    payload = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(0), "c": torch.arange(3)}
    assert digest(payload) == digest(unpack(pack(payload)))
    assert len(digest(payload)) == 32
    for other in (
        {**payload, "a": torch.arange(6.0).reshape(3, 2)},
        {**payload, "a": torch.arange(6.0).reshape(2, 3).double()},
        {**payload, "a": torch.arange(6.0).reshape(2, 3) + torch.tensor(1e-7)},
        {"a": payload["a"], "c": payload["c"], "b": payload["b"]},
        {**payload, "d": torch.zeros(0)},
    ):
        assert digest(other) != digest(payload)


@pytest.mark.parametrize("codec", ["dense()", "qsgd(bits=4)", "terngrad()", "half()", "random_k(ratio=0.3)", "sign()"])
def test_one_liar_in_each_group_changes_no_bit(codec):
    rows = groups()
    free = run(f"vote({codec}, r=3)", rows)
    lies = rows.clone()
    lies[[0, 4, 8]] = torch.tensor([[1e6], [-3.0], [0.0]])
    out = run(f"vote({codec}, r=3)", lies, byzantine=(0, 4, 8))
    assert out.rows.equal(free.rows) and out.weights.equal(free.weights)
    # which of the equal payloads was asked for does not show
    assert run(f"vote({codec}, r=3)", lies, index=1).rows.shape == free.rows.shape
    if codec != "sign()":
        assert kinds(out, "outvoted") == {0, 4, 8}
    assert [n.value for n in out.notes if n.kind == "lost_groups"] == [0.0]


def test_the_vote_is_that_of_gathered_rows():
    rows = in_order(px.coding.vote(px.codecs.dense(), r=3)).assign(11).weights_matrix.float() @ groups(3, 1)
    rows[[0, 4, 5, 9]] = torch.tensor([[7.0], [7.0], [8.0], [9.0]])
    ours = run("vote(dense(), r=3)", rows)
    theirs = run("chain(gather(dense()), group_vote(r=3))", rows)
    assert ours.rows.equal(theirs.rows) and ours.sources == theirs.sources and ours.erased == theirs.erased
    assert kinds(ours, "outvoted") == kinds(theirs, "outvoted")


def test_what_crosses_the_wire():
    rows = groups(d=1000)
    out = run("vote(dense(), r=3)", rows)
    sent = {w: sum(n.value for n in out.notes if n.kind == "bytes" and n.worker == w) for w in range(N)}
    assert sum(sent.values()) == N * 32 + 3 * (4000 + 8)
    assert sorted(sent.values())[:6] == [32.0] * 6
    plain = run("gather(dense())", rows)
    whole = sum(n.value for n in plain.notes if n.kind == "bytes")
    assert sum(sent.values()) / whole < 0.36
    senders = [{w for w in range(N) if _sent(run("vote(dense(), r=3)", rows, index=i), w) > 32} for i in range(3)]
    assert senders == [{0, 3, 6}, {1, 4, 7}, {2, 5, 8}]


def _sent(stack, worker):
    return sum(n.value for n in stack.notes if n.kind == "bytes" and n.worker == worker)


@each("how", ["short", "long", "dtype", "keys", "missing", "random", "weight"])
def test_a_payload_that_does_not_match_its_digest_is_asked_for_elsewhere(how):
    rows = groups()
    out = run(f"vote(dense(), r=3, forge=malformed('{how}'))", rows, byzantine=(0, 3))
    assert out.rows.equal(rows[::3]) and out.erased == 0
    assert kinds(out, "excluded") == {0, 3}


def test_a_group_whose_winners_all_cheat_is_erased():
    out = run("vote(dense(), r=3, forge=malformed('random'))", groups(), byzantine=(0, 1, 2))
    assert out.rows.equal(groups()[3::3]) and out.erased == 1 and kinds(out, "excluded") == {0, 1, 2}


@pytest.mark.parametrize(("none", "left"), [("zero", 3), ("exclude", 2)])
def test_no_majority(none, left):
    rows = groups()
    rows[0], rows[1] = 5.0, 6.0
    out = run(f"vote(dense(), r=3, none='{none}')", rows, byzantine=(0, 1))
    assert len(out.rows) == left and out.erased == 3 - left
    assert [n.value for n in out.notes if n.kind == "undecided"] == [1.0]
    if none == "zero":
        assert sorted(out.rows.abs().sum(dim=1).tolist())[0] == 0.0


def test_the_missing_cost_half_of_what_liars_cost():
    rows = groups(10, 5, 40)
    free = run("vote(dense(), r=5)", rows)
    lies = rows.clone()
    lies[0] = 9.0
    out = run("vote(dense(), r=5)", lies, byzantine=(0,), absent=(1, 2, 5, 6, 7, 8))
    assert out.rows.equal(free.rows)
    assert kinds(out, "excluded") == {1, 2, 5, 6, 7, 8} and kinds(out, "outvoted") == {0}
    nobody = run("vote(dense(), r=5)", rows, absent=range(5))
    assert nobody.rows.equal(free.rows[1:]) and nobody.erased == 1


def test_tolerance_votes_stand_rounding_and_no_more():
    rows = groups()
    noisy = rows * (1 + 1e-6 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)))
    assert run("vote(dense(), r=3, none='exclude')", noisy).erased == 3
    lies = noisy.clone()
    lies[[1, 5]] = torch.tensor([[1e12], [0.0]])
    for scheme in ("vote(dense(), r=3, rtol=1e-4)", "chain(gather(dense()), group_vote(r=3, atol=1e-3))"):
        out = run(scheme, lies, byzantine=(1, 5))
        torch.testing.assert_close(out.rows, rows[::3], rtol=1e-4, atol=1e-4)
        assert kinds(out, "outvoted") == {1, 5}


def test_a_lie_of_huge_norm_brings_no_tolerance_of_its_own():
    rows = groups(3, 3)
    rows[[0, 1]] = torch.full((50,), 1e12)
    rows[0] *= 1.2
    out = run("vote(dense(), r=3, rtol=0.1, none='exclude')", rows, byzantine=(0, 1))
    assert len(out.rows) == 0


def test_a_digest_must_be_one():
    class Odd(px.LocalCollective):
        def gather(self, payloads, limit_bytes):
            odd = {"digest": torch.zeros(31, dtype=torch.uint8)}
            return [odd, {"values": payloads[1]["digest"]}, *super().gather(payloads, limit_bytes)[2:]]

    out = run("vote(dense(), r=3)", groups(), world=Odd(N))
    assert kinds(out, "excluded") == {0, 1} and len(out.rows) == 3


def test_weights_are_part_of_what_is_voted_on():
    stage = in_order(px.coding.vote(px.codecs.dense(), r=3))
    stack = honest(stage, 9)
    weights = stack.weights.clone()
    weights[[0, 3]] = 50.0
    out, _ = stage(replace(stack, weights=weights), None, round_of(9))
    assert out.weights.tolist() == [1.0, 1.0, 1.0] and kinds(out, "outvoted") == {0, 3}
    assert WEIGHT == "weight"


@each(
    ("scheme", "words"),
    [
        ("vote(dense(), r=0)", "r >= 1"),
        ("vote(dense(), r=3, rtol=1.5)", "rtol"),
        ("vote(dense(), r=3, atol=-1.0)", "atol"),
        ("detox(3, mean(), median(), groups=5, q=-1)", "q=-1"),
    ],
)
def test_wrong_numbers(scheme, words):
    with pytest.raises(ValueError, match=words):
        px.parse(scheme)


def test_fewer_workers_than_a_group():
    with pytest.raises(px.TooFewRows, match="n=2, r=3"):
        px.coding.vote(px.codecs.dense(), r=3).rows_out(2)


PAIRINGS = {
    "mean + median": "detox(3, mean(), median(), groups=5)",
    "Multi-Krum + mean": "detox(3, multi_krum(f=0), mean(), groups=2, q=5)",
    "Bulyan + mean": "detox(3, bulyan(f=0, one_shot=True), mean(), groups=1, q=5)",
    "sign majority": "detox(3, majority(), majority(), groups=5, codec=sign())",
}


@pytest.mark.parametrize("scheme", PAIRINGS.values(), ids=PAIRINGS)
@each("n", [45, 46, 47])
def test_pairings_of_the_chapter(scheme, n):
    stage = in_order(px.parse(scheme))
    assert stage.rows_out(n) == 1
    rows = stage.assign(n).weights_matrix.float() @ (1 + 0.1 * torch.randn(n // 3, 40))
    # one liar in each of five groups
    liars = (0, 5, 10, 15, 20)
    lies = rows.clone()
    lies[list(liars)] = -100.0
    free, out = run(scheme, rows), run(scheme, lies, byzantine=liars)
    assert out.rows.equal(free.rows)


def test_detox_passes_the_effective_count_on():
    assert "multi_krum(f=2)" in repr(
        px.coding.detox(3, px.aggregators.multi_krum(f=9), px.aggregators.mean(), groups=2, q=5)
    )
    assert "bulyan(f=1)" in repr(px.coding.detox(5, px.aggregators.bulyan(f=9), px.aggregators.mean(), groups=1, q=5))
    assert "krum(f=9)" in repr(px.coding.detox(5, px.aggregators.krum(f=9), px.aggregators.mean(), groups=1))


def test_your_own_loop_is_told_its_units():
    def exchange(scheme, rank, n):
        return px.exchange(
            torch.nn.Linear(2, 2),
            scheme,
            world=px.ProcessGroupCollective(backend=Loopback(rank, n, torch.device("cpu"))),
        )

    voted = [exchange("chain(vote(dense(), r=3, placement=in_order()), mean())", rank, 7) for rank in range(7)]
    assert [e.units for e in voted] == [((0, 1.0),)] * 4 + [((1, 1.0),)] * 3
    assert all(e.num_units == 2 for e in voted)
    assert exchange("chain(gather(dense()), mean())", 2, 3).units == ((2, 1.0),)

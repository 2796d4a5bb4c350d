# SPDX-License-Identifier: Apache-2.0
"""Layout, stack, chain, gate, wire, gather and reduce."""

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.gate import admit
from phalanx.registry import register
from phalanx.stack import Stack
from phalanx.stage import check_scheme, join_notes, memory_key
from phalanx.wire import pack, unpack
from phalanx.world import BadPayload, payload_bytes
from tests.examples import BYZANTINE, LAYOUT, N, honest, round_of, same

# layout


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


# stack


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


def test_join_notes_takes_what_is_new():
    stack = Stack.of(torch.zeros(2, 1)).note([px.Note("a")])
    others = [stack.note([px.Note("b")]), stack.note([px.Note("c")])]
    assert [n.kind for n in join_notes(stack, others).notes] == ["a", "b", "c"]


# round


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
        base.inside(0).rng(0),
        base.inside(0).inside(1).rng(0),
        base.inside(1).inside(0).rng(0),
    ]
    assert len({torch.rand(1, generator=g).item() for g in keys}) == len(keys)
    assert torch.rand(3, generator=base.rng(2)).equal(torch.rand(3, generator=round_of().rng(2)))


# chain


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
        ("chain(gather(dense()), mean(), gather(dense()))", "2 times"),
    ):
        with pytest.raises(ValueError, match=sentence):
            check_scheme(px.parse(text), 6)
    with pytest.raises(ValueError, match="different assignments"):
        px.parse("chain(gather(dense()), group_vote(r=3), group_vote(r=5))").assign(15)


def test_a_name_is_registered_once():
    register("mean", "aggregator", px.mean)
    with pytest.raises(ValueError, match="registered already"):
        register("mean", "aggregator", px.median)


# gate


def gated(rows, weights=None, gate=None):
    stack = Stack.of(torch.as_tensor(rows))
    if weights is not None:
        stack = replace(stack, weights=torch.tensor(weights, dtype=torch.float64))
    return (gate or px.gate()).admit(stack)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1.1e18, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gate_excludes_bad_rows(bad, dtype):
    rows = torch.ones(4, 5, dtype=dtype)
    rows[2, 3] = bad
    out = gated(rows)
    assert out.ids == (0, 1, 3) and out.erased == 1 and out.gated
    (note,) = out.notes
    assert note.worker == 2 and note.reason
    rows[2, 0] = torch.nan
    assert gated(rows).notes[0].reason == "NaN"


def test_the_gate_admits_what_is_at_the_limit():
    assert len(gated([[1e18, -1e18]]).rows) == 1
    assert len(gated([[10.0], [10.1]], gate=px.gate(limit=10)).rows) == 1
    assert gated(torch.zeros(3, 0)).ids == (0, 1, 2) and gated(torch.zeros(0, 3)).rows.shape == (0, 3)


@pytest.mark.parametrize("weight", [torch.nan, torch.inf, -torch.inf, 0.0, -1.0, 1e12])
def test_the_gate_excludes_absurd_weights(weight):
    out = gated(torch.ones(5, 2), [10.0, 20.0, weight, 30.0, 20.0])
    assert out.ids == (0, 1, 3, 4) and "weight" in out.notes[0].reason


def test_the_gate_bounds_weights_by_policy():
    claimed = [1.0, 1.0, 2.0, 500.0]
    assert gated(torch.ones(4, 1), claimed).weights.tolist() == [1, 1, 2, 10]
    assert gated(torch.ones(4, 1), claimed, px.gate(max_weight=2)).weights.tolist() == [1, 1, 2, 2]
    assert gated(torch.ones(4, 1), claimed, px.gate(weights="equal")).weights.tolist() == [1, 1, 1, 1]
    assert gated(torch.ones(4, 1), claimed, px.gate(weights="trusted")).weights.tolist() == claimed


def test_a_gated_stack_is_not_searched_again_and_a_changed_one_is():
    stack = gated(torch.ones(2, 2))
    assert admit(stack) is stack
    assert not stack.with_rows(stack.rows).gated


@pytest.mark.parametrize("text", ["gate(limit=0.0)", "gate(limit=nan)", "gate(limit=inf)", "gate(max_weight=0.5)"])
def test_gates_that_gate_nothing_are_refused(text):
    with pytest.raises(ValueError, match="gate needs"):
        px.parse(text)


# wire

TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randint(0, 256, (64 * 27,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        .view(dtype)[: torch.Size(shape).numel()]
        .reshape(shape)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]),
    st.integers(0, 99),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), TENSORS, max_size=4))
def test_messages_are_read_as_they_were_written(payload):
    message = pack(payload)
    header = 6 + sum(4 + len(n.encode()) + 8 * t.dim() for n, t in payload.items())
    assert message.dtype == torch.uint8 and len(message) == header + payload_bytes(payload)
    assert same(unpack(message), payload) and list(unpack(message)) == list(payload)
    for cut in range(len(message)):
        with pytest.raises(BadPayload):
            unpack(message[:cut])
    with pytest.raises(BadPayload):
        unpack(torch.cat([message, message[:1]]))


def header(*forms):
    """A message of tensors without a body, from (name, dtype code, shape)."""
    raw = b"PHX1" + struct.pack("<H", len(forms))
    for name, code, shape in forms:
        raw += struct.pack("<H", len(name)) + name + struct.pack(f"<BB{len(shape)}Q", code, len(shape), *shape)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


@pytest.mark.parametrize(
    "message",
    [
        torch.empty(0, dtype=torch.uint8),
        torch.zeros(100, dtype=torch.uint8),
        header((b"x", 99, (0,))),
        header((b"x", 7, (2**40,))),
        header((b"x", 7, (2**63, 0))),
        header((b"x", 7, (2**62, 2**62, 0))),
        header((b"x", 7, (0, 2**62, 2**62))),
        header((b"x", 7, (2**32, 2**32))),
        header((b"x", 7, (2**64 - 1,))),
        header((b"x", 7, (0,)), (b"x", 7, (0,))),
        header((b"\xff\xfe", 7, (0,))),
        header((b"x", 7, (0, *([1] * 254)))),
        header(*[(b"%d" % i, 0, (1,)) for i in range(60)]),
    ],
    ids=lambda m: bytes(m.tolist())[6:30].hex() or "empty",
)
def test_hostile_headers_are_bad_payloads(message):
    try:
        payload = unpack(message)
    except BadPayload:
        return
    # what can be read is no larger than the message
    assert payload_bytes(payload) <= len(message)
    with pytest.raises(BadPayload):
        px.dense().decode(payload, px.Layout.flat(3))


def test_the_wire_refuses_what_it_has_no_place_for():
    with pytest.raises(ValueError, match="no place for 'x'"):
        pack({"x": torch.zeros(1, dtype=torch.complex64)})


# gather and reduce


def test_gather_carries_directions_coded_and_values_as_they_are():
    stack = honest()
    out, _ = px.gather(px.sign())(stack, None, round_of())
    assert out.received and out.gated and out.arrived is not None and out.arrived.rows is out.rows
    cut = LAYOUT.stepped
    assert out.rows[:, cut:].equal(stack.rows[:, cut:]) and set(out.rows[:, :cut].unique().tolist()) == {-1.0, 1.0}
    assert out.weights.equal(stack.weights)


def test_installed_values_of_the_wrong_form_are_erasures():
    wire, stack = px.gather(px.sign()), honest(n=4)
    payloads, _ = wire.send(stack, None, round_of())
    values = payloads[1]["installed"]
    for forged in (values[:-1], values.double(), values.reshape(1, -1), values * torch.nan):
        out = wire.receive([payloads[0], {**payloads[1], "installed": forged}, *payloads[2:]], stack)
        assert out.ids == (0, 2, 3)


def test_payloads_beyond_the_limit_are_erasures():
    class Verbose(px.LocalWorld):
        def gather(self, payloads, limit_bytes):
            flood = {"values": torch.zeros(limit_bytes // 4 + 1)}
            return super().gather([flood, *payloads[1:]], limit_bytes)

    out, _ = px.gather(px.dense())(honest(n=3), None, round_of(3, world=Verbose(3)))
    assert out.ids == (1, 2) and "at most" in out.notes[-1].reason


@pytest.mark.parametrize("text", ["dense()", "half()", "half('bf16')"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reduce_is_the_weighted_mean(text, dtype):
    stack = honest(dtype=dtype)
    out, _ = px.reduce(px.parse(text))(stack, None, round_of())
    expected = (stack.weights @ stack.rows.double()) / stack.weights.sum()
    tolerance = {"half('bf16')": 0.02}.get(text, 0.002)
    torch.testing.assert_close(
        out.rows[0].double(), expected, rtol=0.02 if dtype == torch.bfloat16 else tolerance, atol=tolerance
    )
    assert out.received and out.sources == (tuple(range(N)),) and float(out.weights) == float(stack.weights.sum())


def test_sixteen_bit_shares_add_up_to_one():
    """Shares 1/3 rounded to bfloat16 would shrink every row by 0.2 %."""
    rows = torch.ones(3, 4, dtype=torch.bfloat16)
    assert px.LocalWorld(3).mean(rows, torch.ones(3, dtype=torch.float64)).equal(rows[0])


def test_a_forged_payload_is_only_the_byzantine_workers():
    out, _ = px.gather(px.dense(), forge=px.malformed("missing"))(honest(), None, round_of())
    assert set(out.ids) == set(range(N)) - BYZANTINE
    everyone, _ = px.gather(px.dense(), forge=px.malformed("missing"))(honest(), None, round_of(byzantine=frozenset()))
    assert len(everyone.rows) == N


def test_everyone_erased_leaves_an_empty_stack_and_rules_say_so():
    wire = px.gather(px.dense(), forge=px.malformed("keys"))
    out, _ = wire(honest(), None, round_of(byzantine=frozenset(range(N))))
    assert out.rows.shape == (0, LAYOUT.d) and out.erased == N
    for text in ("mean()", "median()", "krum(f=1)"):
        with pytest.raises(px.TooFewRows, match="needs"):
            px.parse(text)(out, None, round_of())

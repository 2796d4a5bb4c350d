# SPDX-License-Identifier: Apache-2.0
"""Messages, and the stages that carry them."""

import struct
import weakref
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.packing import ReceiveBuffers, Unpacker, pack, unpack
from phalanx.core.payload import BadPayload, payload_bytes
from tests.cases import each
from tests.examples import BYZANTINE, LAYOUT, N, honest, received, round_of, same

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
    for size in (1, 3, 64):
        unpacker = Unpacker(len(message))
        for piece in message.split(size):
            with pytest.raises(BadPayload, match="truncated"):
                _ = unpacker.payload
            unpacker.add(piece.numpy())
        assert same(unpacker.payload, payload)


def test_a_message_that_is_given_up_keeps_no_memory():
    message, taken = pack({"a": torch.ones(1000), "b": torch.ones(1000)}), []

    def room(name, size):
        taken.append(weakref.ref(memory := np.empty(size, dtype=np.uint8)))
        return torch.from_numpy(memory)

    unpacker = Unpacker(len(message), room)
    unpacker.add(message[:5000].numpy())
    assert [memory() is not None for memory in taken] == [True, True]
    unpacker.drop()
    assert [memory() is None for memory in taken] == [True, True]
    unpacker.add(message[5000:].numpy())
    with pytest.raises(BadPayload, match="nobody waits"):
        _ = unpacker.payload
    whole = Unpacker(len(message))
    whole.add(message.numpy())
    whole.drop()
    assert same(whole.payload, {"a": torch.ones(1000), "b": torch.ones(1000)})


def header(*forms):
    """A message of tensors without a body, from (name, dtype code, shape)."""
    raw = b"PHX1" + struct.pack("<H", len(forms))
    for name, code, shape in forms:
        raw += struct.pack("<H", len(name)) + name + struct.pack(f"<BB{len(shape)}Q", code, len(shape), *shape)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8)


@each(
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
)
def test_hostile_headers_are_bad_payloads(message):
    try:
        payload = unpack(message)
    except BadPayload:
        return
    # what can be read is no larger than the message
    assert payload_bytes(payload) <= len(message)
    with pytest.raises(BadPayload):
        px.codecs.dense().decode(payload, px.Layout.flat(3))


def test_the_wire_refuses_what_it_has_no_place_for():
    with pytest.raises(ValueError, match="no place for 'x'"):
        pack({"x": torch.zeros(1, dtype=torch.complex64)})


def test_gather_carries_directions_coded_and_values_as_they_are():
    stack = honest()
    out, _ = px.gather(px.codecs.sign(), gate=px.gate(weights="trusted"))(stack, None, round_of())
    assert out.received and out.gated and out.arrived is not None and out.arrived.rows is out.rows
    cut = LAYOUT.stepped
    assert out.rows[:, cut:].equal(stack.rows[:, cut:]) and set(out.rows[:, :cut].unique().tolist()) == {-1.0, 1.0}
    assert out.weights.equal(stack.weights)


def test_installed_values_of_the_wrong_form_are_erasures():
    wire, stack = px.gather(px.codecs.sign()), honest(n=4)
    payloads = [upload.now for upload in wire.upload(stack, None, round_of())[0]]
    values = payloads[1]["installed"]
    for forged in (values[:-1], values.double(), values.reshape(1, -1), values * torch.nan):
        out = received(wire, [payloads[0], {**payloads[1], "installed": forged}, *payloads[2:]], stack)
        assert out.ids == (0, 2, 3)


def test_payloads_beyond_the_limit_are_erasures():
    class Verbose(px.LocalCollective):
        def gather(self, payloads, limit_bytes):
            flood = {"values": torch.zeros(limit_bytes // 4 + 1)}
            return super().gather([flood, *payloads[1:]], limit_bytes)

    out, _ = px.gather(px.codecs.dense())(honest(n=3), None, round_of(3, world=Verbose(3)))
    (reason,) = [note.reason for note in out.notes if note.kind == "excluded"]
    assert out.ids == (1, 2) and "at most" in reason


@pytest.mark.parametrize("text", ["dense()", "half()", "half('bf16')"])
@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reduce_is_the_weighted_mean(text, dtype):
    stack = honest(dtype=dtype)
    out, _ = px.reduce(px.parse(text))(stack, None, round_of())
    expected = (stack.weights @ stack.rows.double()) / stack.weights.sum()
    tolerance = {"half('bf16')": 0.02}.get(text, 0.002)
    torch.testing.assert_close(
        out.rows[0].double(), expected, rtol=0.02 if dtype == torch.bfloat16 else tolerance, atol=tolerance
    )
    assert out.received and out.sources == (tuple(range(N)),) and float(out.weights) == float(stack.weights.sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_shares_add_up_to_one(dtype):
    for n in range(1, 60):
        rows = torch.ones(n, 4, dtype=dtype)
        weights = torch.ones(n, dtype=torch.float64)
        assert px.LocalCollective(n).mean(rows, weights, weights.sum()).equal(rows[0])


def test_a_forged_payload_is_only_the_byzantine_workers():
    out, _ = px.gather(px.codecs.dense(), forge=px.attacks.malformed("missing"))(honest(), None, round_of())
    assert set(out.ids) == set(range(N)) - BYZANTINE
    everyone, _ = px.gather(px.codecs.dense(), forge=px.attacks.malformed("missing"))(
        honest(), None, round_of(byzantine=frozenset())
    )
    assert len(everyone.rows) == N


def test_everyone_erased_leaves_an_empty_stack_and_rules_say_so():
    wire = px.gather(px.codecs.dense(), forge=px.attacks.malformed("keys"))
    out, _ = wire(honest(), None, round_of(byzantine=frozenset(range(N))))
    assert out.rows.shape == (0, LAYOUT.d) and out.erased == N
    for text in ("mean()", "median()", "krum(f=1)"):
        with pytest.raises(px.TooFewRows, match="needs"):
            px.parse(text)(out, None, round_of())


def shelved(payloads, count=None, most_bytes=None):
    messages = [pack(payload) for payload in payloads]
    buffers = ReceiveBuffers(count or len(messages), len(messages[0]) if most_bytes is None else most_bytes)
    return [unpack(message, partial(buffers.buffer_for, i)) for i, message in enumerate(messages)]


def adjoin(tensors):
    first = tensors[0]
    return all(t.data_ptr() == first.data_ptr() + i * first.nbytes for i, t in enumerate(tensors))


def test_equal_messages_lie_one_after_the_other():
    sent = [{"values": torch.randn(37), "weight": torch.ones(1, dtype=torch.float64)} for _ in range(4)]
    got = shelved(sent)
    for name in ("values", "weight"):
        assert all(torch.equal(a[name], b[name]) for a, b in zip(got, sent, strict=True))
        assert adjoin([payload[name] for payload in got])


def test_another_message_has_memory_of_its_own():
    sent = [{"values": torch.full((n,), float(i))} for i, n in enumerate((8, 8, 9, 8))]
    got = shelved(sent)
    assert all(torch.equal(a["values"], b["values"]) for a, b in zip(got, sent, strict=True))
    assert adjoin([got[0]["values"], got[1]["values"]])
    # the buffers take no more memory than for payloads as they should be
    long = shelved([{"values": torch.randn(1000)}] * 3, most_bytes=100)
    assert not adjoin([payload["values"] for payload in long])


def test_a_place_is_given_once():
    buffers = ReceiveBuffers(2, 64)
    first = unpack(pack({"values": torch.zeros(4)}), partial(buffers.buffer_for, 1))
    second = unpack(pack({"values": torch.ones(4)}), partial(buffers.buffer_for, 1))
    assert first["values"].tolist() == [0.0] * 4 and second["values"].tolist() == [1.0] * 4

# SPDX-License-Identifier: Apache-2.0
"""What every registered codec promises; a new one is tested here by being registered."""

import random
from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.codec import WEIGHT
from phalanx.core.packing import pack, unpack
from phalanx.core.payload import BadPayload, payload_bytes
from phalanx.core.row_memory import load
from phalanx.core.stage import memory_key
from tests.cases import each
from tests.examples import (
    BYZANTINE,
    DTYPES,
    LAYOUT,
    N,
    bits,
    examples,
    honest,
    layout_of,
    leaves,
    received,
    round_of,
    same,
)

CODECS = examples("codec")
DRAWS = 2000
Z = 6.0  # standard errors: one of 10,000 comparisons fails by chance with probability 2e-5


def stream(seed):
    return lambda: torch.Generator().manual_seed(seed)


def coded(codec, row, layout, state=None, seed=0):
    payload, state = codec.encode(row, layout, state or {}, stream(seed))
    return payload, codec.decode(payload, layout), state


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("dtype", DTYPES)
def test_rows_keep_shape_and_dtype_and_stay_finite(codec, dtype):
    layout = layout_of(dtype).head
    top = min(torch.finfo(dtype).max, 1e18)
    for values in (torch.zeros(21), torch.randn(21), torch.full((21,), top), torch.linspace(-top, top, 21)):
        row = values.to(dtype)
        before = row.clone()
        _, decoded, _ = coded(codec, row, layout)
        assert decoded.shape == row.shape and decoded.dtype == dtype and decoded.isfinite().all()
        assert row.equal(before)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_rows_of_no_entries_and_strided_rows(codec):
    for layout in (px.Layout((), ()), px.Layout.flat(0), px.Layout.flat(1)):
        _, decoded, _ = coded(codec, torch.ones(layout.d), layout)
        assert decoded.shape == (layout.d,)
    table = torch.randn(21, 2)
    _, strided, _ = coded(codec, table[:, 0], LAYOUT.head)
    _, plain, _ = coded(codec, table[:, 0].contiguous(), LAYOUT.head)
    assert strided.equal(plain)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("dtype", DTYPES)
def test_payloads_survive_the_wire_bit_for_bit(codec, dtype):
    layout = layout_of(dtype).head
    rows = torch.randn(21).to(dtype), torch.full((21,), float("nan")).to(dtype)
    for row in rows:
        payload, decoded, _ = coded(codec, row, layout)
        arrived = unpack(pack(payload))
        assert same(arrived, payload) and list(arrived) == list(payload)
        assert bits(codec.decode(arrived, layout)).equal(bits(decoded))


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_linear_tells_the_truth(codec):
    if not codec.linear:
        with pytest.raises(ValueError, match="linear"):
            px.reduce(codec)
        return
    both = {}
    for wire in (px.reduce(codec), px.gather(codec, gate=px.gate(weights="trusted"))):
        state = None
        for index in range(3):
            out, state = wire(honest(seed=index), state, round_of(index=index))
            mean = out if len(out.rows) == 1 else px.aggregators.mean()(out, None, round_of())[0]
            both.setdefault(index, []).append(mean)
    for reduced, gathered in both.values():
        # the mean of 16-bit payloads is rounded once more
        tolerance = 0.01 if "half" in repr(codec) else 1e-6
        torch.testing.assert_close(reduced.rows, gathered.rows, rtol=tolerance, atol=tolerance)
        assert reduced.weights.equal(gathered.weights) and reduced.sources == gathered.sources


@pytest.mark.parametrize("codec", [c for c in CODECS if c.unbiased], ids=repr)
def test_unbiased_codecs_pass_a_z_test(codec):
    layout = LAYOUT.head
    row = torch.randn(layout.d, generator=stream(1)(), dtype=torch.float32)
    draws = torch.stack([coded(codec, row, layout, seed=seed)[1] for seed in range(DRAWS)]).double()
    error = (draws.mean(dim=0) - row.double()).abs()
    # Bernstein's second term, for what is drawn too rarely to show a standard error
    rare = Z**2 / 3 * (draws.amax(dim=0) - draws.amin(dim=0)).max() / DRAWS
    assert (error <= Z * draws.std(dim=0) / DRAWS**0.5 + rare + 1e-6).all()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("dtype", DTYPES)
def test_error_feedback_loses_nothing(codec, dtype):
    around, layout, state = px.codecs.error_feedback(codec), layout_of(dtype).head, {}
    for t in range(6):
        row = torch.randn(layout.d, generator=stream(t)()).to(dtype) * 10.0 ** (t - 3)
        zero = torch.zeros_like(row)
        old = load(state.get("residual", {}), layout, zero)
        payload, decoded, state = coded(around, row, layout, state, seed=t)
        new = load(state["residual"], layout, zero)
        scale = float((row.abs() + old.abs() + decoded.abs()).max())
        torch.testing.assert_close(decoded.to(new) + new, row.to(old) + old, rtol=1e-6, atol=1e-6 * scale)
        assert same(payload, codec.encode((row.to(old) + old).to(dtype), layout, {}, stream(t))[0]) or state["inner"]


@pytest.mark.parametrize("codec", [c for c in CODECS if c.scope != "vector"], ids=repr)
def test_memories_serve_every_cut_of_the_model(codec):
    """DDP rebuilds its buckets after the first step: other pieces, in another order."""
    layout = LAYOUT.head
    cuts = [[layout.names], [layout.names[2:], layout.names[:2]], [(name,) for name in reversed(layout.names)]]
    whole, memory = {}, {}
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    for t, cut in enumerate([*cuts, *cuts]):
        row = torch.randn(layout.d, generator=stream(t)())
        _, expected, whole = coded(codec, row, layout, whole)
        pieces = {}
        for names in cut:
            small = px.Layout(tuple(names), tuple(shapes[n] for n in names))
            _, decoded, memory = coded(codec, small.join(layout.split(row)), small, memory)
            pieces.update(small.split(decoded))
        torch.testing.assert_close(layout.join(pieces), expected)


class Meter(px.LocalCollective):
    """Counts the bytes of the buffers that a stage hands over, for each worker."""

    def gather(self, payloads, limit_bytes):
        self.sizes = [0 if p is None else sum(t.untyped_storage().nbytes() for t in own(p)) for p in payloads]
        self.messages = [p if p is None else (pack(p), p) for p in payloads]
        return super().gather(payloads, limit_bytes)

    def mean(self, x, weights, total):
        self.sizes = [size + len(x[0]) * x.element_size() for size in getattr(self, "sizes", [8] * self.size)]
        return super().mean(x, weights, total)


def own(payload):
    """The tensors with storage of their own, as they would be if nothing else were kept alive."""
    return [t.clone(memory_format=torch.contiguous_format) for t in payload.values()]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_metered_bytes_are_the_bytes_of_the_buffers(codec):
    wires = [px.gather(codec), *([px.reduce(codec)] if codec.linear else [])]
    for wire in wires:
        world = Meter(N)
        out, _ = wire(honest(), None, round_of(world=world))
        noted = {note.worker: note.value for note in out.notes if note.kind == "bytes"}
        assert noted == dict(enumerate(world.sizes))
        for message, payload in getattr(world, "messages", []):
            header = 6 + sum(4 + len(name) + 8 * tensor.dim() for name, tensor in payload.items())
            assert len(message) == header + payload_bytes(payload)


STRUCTURAL = ("short", "long", "dtype", "keys", "missing", "weight", "negative_weight")


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("how", STRUCTURAL)
def test_malformed_payloads_are_erasures(codec, how):
    wire = px.gather(codec, forge=px.attacks.malformed(how))
    state = None
    for index in range(2):
        out, state = wire(honest(seed=index), state, round_of(index=index))
        assert {n.worker for n in out.notes if n.kind == "excluded"} == BYZANTINE
        assert all(n.reason for n in out.notes if n.kind == "excluded")
        assert out.erased == len(BYZANTINE) and out.ids == tuple(i for i in range(N) if i not in BYZANTINE)


def sent(codec, stack=None, **kwargs):
    uploads, _ = px.gather(codec).upload(stack or honest(**kwargs), None, round_of())
    return [upload.now for upload in uploads]


def forgeries(payload):
    """Well-formed messages whose contents no worker computed."""
    yield {}
    yield {**payload, "more": torch.zeros(3)}
    yield {WEIGHT: payload[WEIGHT]}
    for key, tensor in payload.items():
        yield {k: v for k, v in payload.items() if k != key}
        yield {**payload, key: tensor.unsqueeze(0)}
        yield {**payload, key: tensor.sum()}
        yield {**payload, key: tensor.new_empty(0)}
        yield {**payload, key: torch.zeros(2**20)}
        if tensor.is_floating_point():
            limits = torch.nan, torch.inf, -torch.inf, torch.finfo(tensor.dtype).max, torch.finfo(tensor.dtype).min
        else:
            limits = -1 % 256, torch.iinfo(tensor.dtype).max, torch.iinfo(tensor.dtype).min, len(tensor), LAYOUT.d
        for limit in limits:
            yield {**payload, key: torch.full_like(tensor, limit)}
            spoilt = tensor.clone()
            spoilt.view(-1)[-1:] = limit
            yield {**payload, key: spoilt}


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("dtype", DTYPES)
def test_no_payload_stops_the_server(codec, dtype):
    stack = honest(n=3, dtype=dtype)
    wire, good = px.gather(codec), sent(codec, stack)
    for forged in forgeries(good[1]):
        out = received(wire, [good[0], forged, good[2]], stack)
        assert out.rows.isfinite().all() and {0, 2} <= set(out.ids)
        assert len(out.rows) + out.erased == 3


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_no_message_stops_the_server(codec):
    """Bytes that arrive damaged: changed, cut, lengthened, or random from end to end."""
    chance = random.Random(0)
    stack = honest(n=3)
    wire, good = px.gather(codec), sent(codec, stack)
    message = pack(good[1])
    for trial in range(120):
        damaged = message.clone()
        for _ in range(1 + trial % 4):
            damaged[chance.randrange(len(damaged) if trial % 2 else 40)] = chance.randrange(256)
        if trial % 5 == 0:
            damaged = damaged[: chance.randrange(len(damaged))]
        if trial % 7 == 0:
            damaged = torch.cat([damaged, damaged[: chance.randrange(9)]])
        if trial % 11 == 0:
            damaged = torch.randint(256, (60,), generator=stream(trial)()).to(torch.uint8)
        try:
            payload = unpack(damaged)
        except BadPayload as error:
            payload = error
        out = received(wire, [good[0], payload, good[2]], stack)
        assert out.rows.isfinite().all() and {0, 2} <= set(out.ids)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_random_bytes_of_the_right_form_never_stop_the_server(codec):
    wire = px.gather(codec, forge=px.attacks.malformed("random"))
    for index in range(12):
        out, _ = wire(honest(), None, round_of(index=index))
        assert out.rows.isfinite().all() and set(range(N)) - BYZANTINE <= set(out.ids)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_bad_round_does_not_poison_the_memory(codec):
    wire, state = px.gather(codec), None
    key = memory_key(0, False)
    for index, value in enumerate((1.0, torch.nan, torch.inf, -torch.inf, 1.0, 1.0)):
        stack = honest(seed=index)
        rows = stack.rows.clone()
        rows[0, index] = value
        out, state = wire(replace(stack, rows=rows), state, round_of(index=index))
        assert all(bool(t.isfinite().all()) for t in leaves((state or {}).get(key, {})))
    assert out.ids == tuple(range(N))

"""Coded tensors as bytes: they come back, and no other bytes do harm."""

import random
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.payload import BadPayload
from phalanx.core.serialization import _digest
from tests.cases import each
from tests.examples import DTYPES, examples, same

SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 3, 3, 3), (3, 0, 2)]


def keeps_memory(codec):
    layout = px.Layout.flat(9)
    return bool(codec.encode(torch.ones(9), layout, {}, torch.Generator)[1])


CODECS = [codec for codec in examples("codec") if not keeps_memory(codec)]
SPARSE = px.parse("atomo(entries(), budget=2)")


def signed(body):
    """A forger knows the digest too."""
    return body + _digest(body)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("dtype", DTYPES)
def test_what_the_codec_decodes_comes_back(codec, dtype):
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        data = px.encode(codec, x, seed=3)
        assert type(data) is bytes and data == px.encode(codec, x, seed=3)
        back = px.decode(codec, data)
        assert back.shape == x.shape and back.dtype == dtype
        if repr(codec) == "dense()":
            assert same(back, x)


def test_exact_values_and_strided_tensors():
    x = torch.randn(5, 6)[:, ::2]
    assert px.decode(px.codecs.dense(), px.encode(px.codecs.dense(), x, seed=0)).equal(x)


def test_seeds_draw_differently():
    x = torch.randn(100)
    codec = px.parse("atomo(entries(), ratio=0.1)")
    rows = [px.decode(codec, px.encode(codec, x, seed=seed)) for seed in (0, 1)]
    assert not rows[0].equal(rows[1])


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_damaged_bytes_are_refused(codec):
    chance = random.Random(0)
    data = px.encode(codec, torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), seed=0)
    damaged = [data[:i] for i in range(0, len(data), 7)] + [
        data[1:],
        data + b"\0",
        data + data,
        b"",
        b"PHXT",
        b"0" * 300,
    ]
    for _ in range(60):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(changed))
    for forged in damaged:
        with pytest.raises(BadPayload):
            px.decode(codec, forged)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_forged_bytes_with_a_right_digest_decode_or_are_refused(codec):
    chance = random.Random(1)
    body = px.encode(codec, torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), seed=0)[:-8]
    for trial in range(150):
        forged = bytearray(body)
        for _ in range(1 + trial % 4):
            forged[chance.randrange(len(forged))] = chance.randrange(256)
        if trial % 5 == 0:
            forged = forged[: chance.randrange(4, len(forged))]
        if trial % 7 == 0:
            forged += bytes(chance.randrange(9))
        try:
            back = px.decode(codec, signed(bytes(forged)), max_elements=10_000)
        except BadPayload:
            continue
        assert back.numel() <= 10_000


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    for forged in (data, b"PHXT" + data, signed(b"PHXT" + data), signed(b"PHXT\x01\x07\x00dense()" + data)):
        try:
            back = px.decode(px.codecs.dense(), forged)
        except BadPayload:
            continue
        assert back.numel() * back.element_size() <= len(data)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@each("shape", [(2**62, 4), (2**20, 2**20), (0, 2**63), (2**64 - 1,), (2**27,)])
def test_a_forged_shape_is_refused_before_the_codec_sees_it(codec, shape):
    data = px.encode(codec, torch.zeros(5), seed=0)
    head = 4 + 3 + len(repr(codec))
    kind = data[head : head + 1]
    forged = data[:head] + kind + struct.pack(f"<B{len(shape)}Q", len(shape), *shape) + data[head + 10 : -8]
    with pytest.raises(BadPayload, match="entries are allowed"):
        px.decode(codec, signed(forged))


def test_large_sparse_tensors_are_decoded_on_request():
    x = torch.zeros(2**24 + 1)
    x[5] = 3.0
    data = px.encode(SPARSE, x, seed=0)
    assert len(data) < 200
    with pytest.raises(BadPayload, match="max_elements"):
        px.decode(SPARSE, data)
    assert px.decode(SPARSE, data, max_elements=2**25).equal(x)


def test_the_wrong_codec_and_version_are_named():
    data = px.encode(px.codecs.sign(), torch.randn(5), seed=0)
    with pytest.raises(BadPayload, match=r"coded by sign\(\), not by dense\(\)"):
        px.decode(px.codecs.dense(), data)
    with pytest.raises(BadPayload, match="version 9"):
        px.decode(px.codecs.sign(), signed(data[:4] + b"\x09" + data[5:-8]))


def test_what_cannot_be_encoded_says_why():
    with pytest.raises(ValueError, match="remembers"):
        px.encode(px.codecs.error_feedback(px.codecs.sign()), torch.randn(5), seed=0)
    with pytest.raises(ValueError, match="floating-point"):
        px.encode(px.codecs.dense(), torch.arange(5), seed=0)


def test_what_has_no_dense_values_is_refused():
    for tensor, words in (
        (torch.eye(4).to_sparse(), "torch.sparse_coo"),
        (torch.empty(4, device="meta"), "without values"),
        (torch.ones(3, dtype=torch.complex64), "complex64"),
    ):
        with pytest.raises(ValueError, match=words):
            px.encode(px.codecs.dense(), tensor, seed=0)


def test_a_negative_bit_is_resolved():
    tensor = torch.randn(6, dtype=torch.complex64).conj().imag
    assert tensor.is_neg()
    back = px.decode(px.codecs.dense(), px.encode(px.codecs.dense(), tensor, seed=0))
    assert torch.equal(back, tensor.resolve_neg())


HUGE = (
    torch.full((300,), 1e38),
    -torch.full((300,), 3.4e38),
    (torch.randn(300, generator=torch.Generator().manual_seed(0)) * 2.5e38).clamp(-3.4e38, 3.4e38),
)


@pytest.mark.parametrize("codec", [c for c in examples("codec") if "error_feedback" not in repr(c)], ids=repr)
def test_finite_rows_near_the_largest_number_stay_finite_or_are_refused(codec):
    for row in HUGE:
        try:
            data = px.encode(codec, row, seed=1)
        except ValueError as error:
            assert "overflows; divide the tensor first" in str(error)
            continue
        assert bool(px.decode(codec, data).isfinite().all()), row[:3]


def test_random_k_does_not_hide_what_is_not_finite():
    for value in (float("nan"), float("inf")):
        row = torch.ones(1000)
        row[7] = value
        for seed in range(5):
            codec = px.codecs.random_k(0.01)
            assert not bool(px.decode(codec, px.encode(codec, row, seed=seed)).isfinite().all())

# SPDX-License-Identifier: Apache-2.0
"""The bit streams: exact, as short as stated, and deaf to hostile bytes."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.codecs import bit_streams, quantizer_kernels, selection_kernels
from phalanx.core.payload import BadPayload
from tests.cases import each


def gamma_bits(number):
    return 2 * number.bit_length() - 1


@st.composite
def levels(draw):
    """Whole numbers within a bound, in runs of zeros."""
    bits = draw(st.integers(1, 8))
    top = 2**bits - 1
    runs = draw(st.lists(st.tuples(st.integers(0, 700), st.integers(-top, top)), max_size=12))
    entries = [x for zeros, level in runs for x in [0] * zeros + [level]]
    return bits, np.array(entries[: draw(st.integers(0, 3000))], np.int64)


def codes_of(bits, values):
    return (np.abs(values) + np.where(values < 0, 2**bits, 0)).astype(np.uint16)


def elias(bits, values):
    """The stream of levels, and the scale 2^bits - 1 of the one bucket that makes them their own values."""
    out = np.full(len(values) * (2 * bits + 1) // 8 + 16, 255, np.uint8)
    size = bit_streams.elias(codes_of(bits, values), bits, out)
    assert (out[size + 5 :] == 255).all()
    return np.array([2**bits - 1] if len(values) else [], np.float32), out[:size]


def unelias(stream, bits, scales, count):
    out = np.full(count, np.nan, np.float32)
    return out if bit_streams.unelias(stream, max(1, count), scales, bits, out) else None


@given(levels())
def test_elias_is_exact_and_as_long_as_stated(sample):
    bits, values = sample
    scales, stream = elias(bits, values)
    assert (unelias(stream, bits, scales, len(values)) == values).all()
    length, run = 0, 1
    for value in values.tolist():
        if value:
            length += gamma_bits(run) + 1 + (gamma_bits(abs(value)) if bits > 1 else 0)
        run = 1 if value else run + 1
    length += gamma_bits(run) if run > 1 else 0
    assert len(stream) == -(-length // 8) and length <= (2 * bits + 1) * len(values)


@given(levels(), st.data())
def test_elias_takes_no_other_length(sample, data):
    bits, values = sample
    scales, stream = elias(bits, values)
    assert unelias(np.append(stream, np.uint8(0)), bits, scales, len(values)) is None
    if len(stream):
        assert unelias(stream[: data.draw(st.integers(0, len(stream) - 1))], bits, scales, len(values)) is None


@given(levels())
def test_planes_are_exact(sample):
    bits, values = sample
    codes = np.zeros(quantizer_kernels.BLOCK + 8, np.uint16)
    again = np.full(quantizer_kernels.BLOCK + 8, 9, np.uint16)
    for start in range(0, len(values), quantizer_kernels.BLOCK):
        part = values[start : start + quantizer_kernels.BLOCK]
        codes[:] = 0
        codes[: len(part)] = codes_of(bits, part)
        planes = np.full(2 * quantizer_kernels.BLOCK, 255, np.uint8)
        size = quantizer_kernels.pack(codes, len(part), bits + 1, planes)
        assert size == sum(-(-len(part) * p // 8) for p in (8, 4, 2, 1) if (bits + 1) & p)
        assert quantizer_kernels.unpack(planes, len(part), bits + 1, again) == size and (again == codes).all()


@given(st.sets(st.integers(0, 5000), max_size=300), st.integers(0, 12))
def test_rice_is_exact_and_as_long_as_stated(places, parameter):
    sorted_places = np.array(sorted(places), np.int64)
    room = (len(places) * (parameter + 1) + (5001 >> parameter)) // 8 + 1
    out = np.full(room + 16, 255, np.uint8)
    size = bit_streams.rice(sorted_places, parameter, out)
    assert size <= room and (out[size + 5 :] == 255).all()
    again = np.empty(len(places), np.int64)
    assert bit_streams.unrice(out[:size], parameter, 5001, again) and (again == sorted_places).all()
    assert not bit_streams.unrice(np.append(out[:size], np.uint8(0)), parameter, 5001, again)
    if size:
        assert not bit_streams.unrice(out[: size - 1], parameter, 5001, again)
        assert not bit_streams.unrice(out[:size], parameter, max(places), again)


@given(st.binary(max_size=200), st.integers(1, 8), st.integers(0, 2000))
def test_random_streams_end(raw, bits, count):
    """Whatever comes out was within the bounds; the reader writes nowhere else."""
    stream = np.frombuffer(raw, np.uint8)
    scales = np.array([1.0] if count else [], np.float32)
    out = unelias(stream, bits, scales, count)
    if out is not None:
        assert np.isfinite(out).all() and (np.abs(out) <= 1).all()
    places = np.full(count, -1, np.int64)
    if bit_streams.unrice(stream, bits, 5000, places) and count:
        assert places[0] >= 0 and places[-1] < 5000 and (np.diff(places) > 0).all()


@each("byte", [0, 1, 128, 255])
def test_endless_runs_end(byte):
    stream = np.full(100_000, byte, np.uint8)
    for count in (1, 100, 60_000):
        unelias(stream, 4, np.ones(1, np.float32), count)
        assert not bit_streams.unrice(stream, 3, 1000, np.empty(count, np.int64))


@pytest.mark.parametrize(
    "text",
    [
        "qsgd(bits=3, bucket=32)",
        "qsgd(bits=5, coding='elias')",
        "terngrad()",
        "terngrad(coding='elias')",
        "lq()",
        "stochastic_binary()",
        "top_k(ratio=0.1)",
        "random_k(ratio=0.1)",
    ],
)
def test_damaged_payloads_decode_within_the_layout_or_are_bad(text):
    """Truncated, extended, bit-flipped and random bodies."""
    codec, chance = px.parse(text), random.Random(0)
    layout = px.Layout(("a", "b"), (torch.Size([301]), torch.Size([40])))
    good, _ = codec.encode(torch.randn(341), layout, {}, lambda: torch.Generator().manual_seed(0))
    refused = 0
    for trial in range(400):
        payload = dict(good)
        key = chance.choice(sorted(good))
        raw = bytearray(good[key].contiguous().view(torch.uint8).numpy().tobytes())
        match trial % 4:
            case 0:
                raw = raw[: chance.randrange(len(raw))]
            case 1:
                raw += bytes(chance.randrange(256) for _ in range(chance.randrange(1, 20)))
            case 2:
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            case _:
                raw = bytearray(chance.randrange(256) for _ in raw)
        size = good[key].element_size()
        raw = raw[: len(raw) // size * size]
        flat = torch.frombuffer(raw, dtype=torch.uint8).view(good[key].dtype) if raw else good[key].new_empty(0)
        payload[key] = flat.reshape(-1, *good[key].shape[1:]) if flat.numel() % 2 == 0 else flat
        try:
            assert codec.decode(payload, layout).shape == (341,)
        except BadPayload:
            refused += 1
    assert refused > 100


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-40, np.inf, np.nan]), min_size=1, max_size=60), st.data()
)
def test_the_exact_search_finds_the_kth_magnitude(values, data):
    dtype, words = data.draw(st.sampled_from([(np.float32, np.int32), (np.float64, np.int64)]))
    keys = np.abs(np.array(values, dtype)).view(words)
    k = data.draw(st.integers(1, len(keys)))
    threshold, larger = selection_kernels.kth_largest(np.array(values, dtype).view(words), np.empty(0, np.int64), k)
    assert threshold == np.sort(keys)[::-1][k - 1] and larger == (keys > threshold).sum()

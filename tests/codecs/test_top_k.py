# SPDX-License-Identifier: Apache-2.0
"""Top-k by chunks with coded values: its bits, its error, and what is refused."""

import numpy as np
import pytest
import torch

import phalanx as px
from phalanx.core.payload import payload_bytes
from tests.cases import each


def coded(codec, row, layout=None):
    layout = layout or px.Layout.flat(len(row), row.dtype)
    payload, _ = codec.encode(row, layout, {}, torch.Generator)
    return payload, codec.decode(payload, layout)


@each(("ratio", "most"), ((1 / 64, 9.8), (1 / 32, 8.7)))
def test_bits_of_a_sent_value(ratio, most):
    """Places, values and scales together; a place alone takes at most 0.15 bits more than its entropy."""
    row = torch.randn(2_000_000, generator=torch.Generator().manual_seed(1))
    codec = px.codecs.top_k(ratio, chunk=4096, values=2)
    payload, decoded = coded(codec, row)
    count = int((decoded != 0).sum())
    assert count == sum(round(ratio * size) for size in [4096] * (len(row) // 4096) + [len(row) % 4096])
    assert 8 * payload_bytes(payload) / count <= most
    entropy = -(ratio * np.log2(ratio) + (1 - ratio) * np.log2(1 - ratio)) / ratio
    assert entropy < 8 * payload["places"].numel() / count < entropy + 0.15


@each("ratio", (1 / 64, 0.25, 1.0))
def test_the_largest_of_each_chunk_are_sent_as_they_are(ratio):
    layout = px.Layout(("a", "b", "c"), (torch.Size([100, 7]), torch.Size([3]), torch.Size([64])))
    row = torch.randn(layout.d, generator=torch.Generator().manual_seed(2))
    row[10:14] = 0.5  # equal magnitudes
    _, decoded = coded(px.codecs.top_k(ratio, chunk=64), row, layout)
    expected = torch.zeros_like(row)
    for tensor, part in zip(layout.split(row).values(), layout.split(expected).values(), strict=True):
        for chunk, out in zip(tensor.flatten().split(64), part.flatten().split(64), strict=True):
            k = min(len(chunk), max(1, round(ratio * len(chunk))))
            kept = chunk.abs().sort(descending=True, stable=True).indices[:k]
            out[kept] = chunk[kept]
    assert torch.equal(decoded, expected)


def test_a_chunk_as_long_as_every_tensor_changes_nothing():
    row = torch.randn(5000)
    plain, chunked = (coded(px.codecs.top_k(0.01, chunk=chunk), row)[0] for chunk in (None, 5000))
    assert all(torch.equal(plain[key], chunked[key]) for key in plain)


@each(("bits", "most"), ((2, 0.10), (4, 0.025), (8, 0.002)))
def test_coded_values_are_near_the_values(bits, most):
    """The error of a level is at most half the distance of two levels: (high - low) / 2^bits."""
    row = torch.randn(400_000, generator=torch.Generator().manual_seed(3)) * 1e-12
    exact = coded(px.codecs.top_k(1 / 64, chunk=4096), row)[1]
    decoded = coded(px.codecs.top_k(1 / 64, chunk=4096, values=bits), row)[1]
    assert torch.equal(decoded != 0, exact != 0) and torch.equal(decoded.sign(), exact.sign())
    assert float((decoded - exact).norm() / exact.norm()) < most
    for chunk, out in zip(exact.split(4096), decoded.split(4096), strict=True):
        sent = chunk[chunk != 0].abs()
        # the ends are rounded outwards: to three bits of a fraction and to 1/32 of the upper end
        width = float(sent.max()) * 1.125 - float(sent.min()) + float(sent.max()) * 1.125 / 32
        assert float((out - chunk).abs().max()) <= width / 2**bits


@each("value", (torch.nan, torch.inf, -torch.inf))
def test_what_is_not_finite_arrives_as_nan_in_its_chunk_only(value):
    row = torch.randn(300)
    row[130] = value
    decoded = coded(px.codecs.top_k(0.1, chunk=100, values=4), row)[1]
    assert decoded[100:200].isnan().sum() == 10 and decoded[:100].isfinite().all() and decoded[200:].isfinite().all()


@each("dtype", (torch.float16, torch.bfloat16, torch.float64))
@each("size", (0.0, 1e-45, 1e-7, 6e4))
def test_rows_of_any_size_and_dtype(size, dtype):
    row = (torch.linspace(-1, 1, 333, dtype=torch.float64) * size).to(dtype)
    decoded = coded(px.codecs.top_k(0.2, chunk=50, values=3), row)[1]
    assert decoded.dtype == dtype and decoded.isfinite().all()
    top = float(row.abs().max())
    assert float((decoded - row).abs().max()) <= max(top, 1e-38) * 1.13


def test_no_row_is_lost_with_a_decayed_memory():
    """The residual of DeMo: what is not sent, and 95 % of it in the next round."""
    codec = px.parse("error_feedback(chunked_dct(top_k(1/8, chunk=64, values=2), chunk=8), decay=0.95)")
    layout, state = px.Layout(("a", "b"), (torch.Size([16, 24]), torch.Size([40]))), {}
    residual = torch.zeros(layout.d)
    for index in range(5):
        row = torch.randn(layout.d, generator=torch.Generator().manual_seed(index))
        payload, state = codec.encode(row, layout, state, torch.Generator)
        sent = codec.decode(payload, layout)
        residual = 0.95 * residual + row - sent
        kept = torch.cat([part.flatten() for part in state["residual"].values()])
        torch.testing.assert_close(kept, residual, rtol=1e-5, atol=1e-5)
    assert px.parse(repr(codec)) == codec


def test_a_smooth_tensor_has_few_coefficients():
    smooth = torch.outer(torch.linspace(0, 1, 128), torch.linspace(1, 2, 64)).flatten()
    layout = px.Layout(("a",), (torch.Size([128, 64]),))
    errors = [
        float((coded(px.parse(codec), smooth, layout)[1] - smooth).norm() / smooth.norm())
        for codec in ("top_k(1/64, chunk=4096)", "chunked_dct(top_k(1/64, chunk=4096))")
    ]
    assert errors[1] < 0.01 < errors[0]


def test_misuse_is_refused():
    for fields, words in (
        ({"chunk": 0}, "chunk >= 1"),
        ({"chunk": 64, "values": 1}, "2 to 8 bits"),
        ({"chunk": 64, "values": 9}, "2 to 8 bits"),
        ({"values": 4}, "add chunk=4096"),
    ):
        with pytest.raises(ValueError, match=words):
            px.codecs.top_k(0.1, **fields)
    with pytest.raises(ValueError, match="0 < decay <= 1"):
        px.codecs.error_feedback(px.codecs.sign(), decay=0)
    with pytest.raises(ValueError, match="chunk >= 1"):
        px.codecs.chunked_dct(px.codecs.dense(), chunk=0)


@each("change", ("high", "low", "places", "levels"))
def test_payloads_that_no_encoder_writes(change):
    codec, layout = px.codecs.top_k(0.25, chunk=10, values=3), px.Layout.flat(29)
    payload, _ = coded(codec, torch.randn(29))
    if change == "levels":
        payload["levels"] = payload["levels"].clone()
        payload["levels"][-1] |= 0x80  # 6 entries of 3 bits leave six bits of the last byte
    elif change == "places":
        payload["places"] = payload["places"][:-1]
    else:
        payload["scales"] = torch.zeros(2 if change == "low" else 4, dtype=torch.int16)
    with pytest.raises(px.BadPayload):
        codec.decode(payload, layout)

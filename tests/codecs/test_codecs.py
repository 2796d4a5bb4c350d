# SPDX-License-Identifier: Apache-2.0
"""Numbers of single codecs; what all of them promise is in test_laws_codecs."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.payload import BadPayload, payload_bytes
from phalanx.core.precision import cast, finite
from tests.cases import each

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def rng():
    return torch.Generator().manual_seed(0)


@st.composite
def rows(draw):
    """Hostile rows: empty, one entry, odd lengths, zeros, tiny, huge, no numbers, strided."""
    dtype = draw(st.sampled_from(DTYPES))
    top = torch.finfo(dtype).max
    value = st.sampled_from(
        [0.0, -0.0, 1.0, -1.5, 1e-30, -1e-8, 65504.0, 65520.0, -7e4, 3e38, top, -top, float("nan"), float("inf")]
    )
    values = draw(st.lists(value, max_size=19))
    row = torch.tensor(values, dtype=torch.float64).to(dtype)
    return row.repeat_interleave(3)[::3] if draw(st.booleans()) else row


@given(rows(), st.sampled_from(["fp16", "bf16"]))
def test_half_takes_two_bytes_and_keeps_what_is_finite(row, precision):
    codec, layout = px.codecs.half(precision), px.Layout.flat(len(row), row.dtype)
    payload, _ = codec.encode(row, layout, {}, rng)
    assert payload_bytes(payload) == 2 * len(row)
    decoded = codec.decode(payload, layout)
    assert decoded.isfinite().equal(row.isfinite()) and decoded.isnan().equal(row.isnan())
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    fits = row.to(narrow).isfinite() & row.to(narrow).to(row.dtype).isfinite()
    assert decoded[fits].equal(row[fits].to(narrow).to(row.dtype))
    # what does not fit ends at the limit of the narrower dtype, with its sign
    beyond = row.isfinite() & ~fits
    limit = min(torch.finfo(narrow).max, torch.finfo(row.dtype).max)
    assert (decoded[beyond].double().abs() >= 0.99 * limit).all() and decoded[beyond].sign().equal(row[beyond].sign())


@given(rows(), st.sampled_from(DTYPES))
def test_cast_keeps_what_is_finite(row, dtype):
    out = cast(row, dtype)
    assert out.dtype == dtype and out.isfinite().equal(row.isfinite())


@given(rows())
def test_sign_sends_one_bit_an_entry(row):
    codec, layout = px.codecs.sign(), px.Layout.flat(len(row), row.dtype)
    payload, _ = codec.encode(row, layout, {}, rng)
    assert payload_bytes(payload) == (len(row) + 7) // 8
    expected = torch.tensor([-1.0 if value < 0 else 1.0 for value in row.tolist()], dtype=row.dtype)
    assert codec.decode(payload, layout).equal(expected)


def test_sign_scaled_sends_the_mean_magnitude_of_each_tensor():
    layout = px.Layout(("a", "b", "none"), (torch.Size([3]), torch.Size([1, 2]), torch.Size([0])))
    row = torch.tensor([1.0, -2.0, 3.0, 0.0, -1.0])
    payload, _ = px.codecs.sign(scaled=True).encode(row, layout, {}, rng)
    assert payload["scales"].tolist() == [2.0, 0.5, 0.0] and payload_bytes(payload) == 1 + 3 * 4
    assert px.codecs.sign(scaled=True).decode(payload, layout).tolist() == [2.0, -2.0, 2.0, 0.5, -0.5]


def test_sign_refuses_what_it_does_not_write():
    layout = px.Layout.flat(5)
    good = {"signs": torch.tensor([0b00010101], dtype=torch.uint8)}
    assert px.codecs.sign().decode(good, layout).tolist() == [1.0, -1.0, 1.0, -1.0, 1.0]
    with pytest.raises(BadPayload, match="beyond the end"):
        px.codecs.sign().decode({"signs": torch.tensor([0b00110101], dtype=torch.uint8)}, layout)
    with pytest.raises(BadPayload, match="negative scale"):
        px.codecs.sign(scaled=True).decode({**good, "scales": torch.tensor([-1.0])}, layout)


@pytest.mark.parametrize("text", ["sign(scaled=True)", "half(precision='bf16')", "sign()"])
def test_error_feedback_sends_everything_in_the_end(text):
    """The sum of what arrived is the sum of what was computed, less one residual."""
    codec, layout, state = px.codecs.error_feedback(px.parse(text)), px.Layout.flat(9), {}
    computed, arrived = torch.zeros(9, dtype=torch.float64), torch.zeros(9, dtype=torch.float64)
    for t in range(40):
        row = torch.randn(9, generator=torch.Generator().manual_seed(t))
        payload, state = codec.encode(row, layout, state, rng)
        computed += row
        arrived += codec.decode(payload, layout)
    torch.testing.assert_close(arrived + state["residual"]["row"], computed, rtol=1e-5, atol=1e-4)


def test_error_feedback_repairs_the_sign_where_it_is_wrong():
    """Of rows (1, 0.1) the sign alone makes equal steps; with memory their ratio is right in the end."""
    row, layout = torch.tensor([1.0, 0.1]), px.Layout.flat(2)
    means = []
    for codec in (px.codecs.sign(scaled=True), px.codecs.error_feedback(px.codecs.sign(scaled=True))):
        state, total = {}, torch.zeros(2)
        for _ in range(200):
            payload, state = codec.encode(row, layout, state, rng)
            total += codec.decode(payload, layout)
        means.append(total / 200)
    assert means[0][0] == means[0][1]
    torch.testing.assert_close(means[1], row, rtol=0, atol=0.02)


def test_error_feedback_keeps_the_old_residual_where_a_row_is_no_number():
    codec, layout = px.codecs.error_feedback(px.codecs.half()), px.Layout.flat(3)
    _, first = codec.encode(torch.tensor([0.1, 0.1, 0.1]), layout, {}, rng)
    payload, second = codec.encode(torch.tensor([float("nan"), float("inf"), 0.2]), layout, first, rng)
    # the gate at the server sees both
    assert payload["values"].isfinite().tolist() == [False, False, True]
    before, after = first["residual"]["row"], second["residual"]["row"]
    assert after[:2].equal(before[:2]) and after.isfinite().all() and after[2] != before[2]


def test_error_feedback_keeps_what_a_narrow_dtype_cannot_hold():
    codec, layout = px.codecs.error_feedback(px.codecs.dense()), px.Layout.flat(1, torch.float16)
    row = torch.tensor([60000.0], dtype=torch.float16)
    state = {"residual": {"row": torch.tensor([20000.0])}}
    payload, state = codec.encode(row, layout, state, rng)
    assert payload["values"].item() == 65504 and state["residual"]["row"].item() == 80000 - 65504


def test_the_residual_is_in_memory_of_its_own():
    """safetensors refuses tensors that share memory, and DDP reuses its buckets."""
    layout = px.Layout(("a", "b"), (torch.Size([2]), torch.Size([3])))
    row = torch.randn(5)
    _, state = px.codecs.error_feedback(px.codecs.sign()).encode(row, layout, {}, rng)
    storages = {t.untyped_storage().data_ptr() for t in state["residual"].values()}
    assert len(storages) == 2 and row.untyped_storage().data_ptr() not in storages


def test_nested_memories_do_not_meet():
    codec, layout, state = px.codecs.error_feedback(px.codecs.error_feedback(px.codecs.sign())), px.Layout.flat(2), {}
    for _ in range(3):
        _, state = codec.encode(torch.tensor([0.3, -0.2]), layout, state, rng)
    assert set(state) == {"residual", "inner"} and set(state["inner"]) == {"residual", "inner"}
    assert not state["inner"]["residual"]["row"].equal(state["residual"]["row"])


@each("dtype", DTYPES)
def test_finite_sees_every_entry_and_no_overflow(dtype):
    top = torch.finfo(dtype).max
    for x in (torch.full((5,), top, dtype=dtype), torch.zeros(0, dtype=dtype), torch.full((2, 3), -top, dtype=dtype)):
        assert finite(x)
    for bad in (math.nan, math.inf, -math.inf):
        for place in range(4):
            x = torch.full((4,), top, dtype=dtype)
            x[place] = bad
            assert not finite(x)

# SPDX-License-Identifier: Apache-2.0
"""Low-rank attention and PyTorch's Transformers."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.lowrank.attention import LowRankAttention
from tests.cases import each
from tests.lowrank.full_rank import close, full_rank


@st.composite
def attentions(draw):
    heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    other = draw(st.sampled_from([None, 5]))
    torch.manual_seed(draw(st.integers(0, 9)))
    return nn.MultiheadAttention(
        heads * size,
        heads,
        bias=draw(st.booleans()),
        add_bias_kv=draw(st.booleans()),
        add_zero_attn=draw(st.booleans()),
        kdim=other,
        vdim=draw(st.sampled_from([other, 3])),
        batch_first=draw(st.booleans()),
    )


@st.composite
def calls(draw):
    """An attention, and arguments for it: batched or alone, with masks of all sorts."""
    dense = draw(attentions())
    length, known, batch = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.sampled_from([None, 0, 1, 3]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 9)))

    def sequence(steps, width):
        shape = (steps, width) if batch is None else (batch, steps, width)
        x = torch.randn(*shape, generator=rng)
        return x if batch is None or dense.batch_first else x.transpose(0, 1)

    own = draw(st.booleans()) and dense.kdim == dense.vdim == dense.embed_dim
    query = sequence(length, dense.embed_dim)
    key, value = (query, query) if own else (sequence(known, dense.kdim), sequence(known, dense.vdim))
    known = length if own else known
    rows, options = batch if batch is not None else 1, {"need_weights": draw(st.booleans())}
    options["average_attn_weights"] = draw(st.booleans())
    numbers = draw(st.booleans())

    def mask(*shape):
        out = torch.rand(*shape, generator=rng) < 0.4
        out[..., 0] = False  # a row that sees nothing is not a number, also in the dense layer
        return out.float() * -3.0 if numbers else out

    if batch == 0:
        return dense, (query, key, value), options  # the dense layer takes no masks then
    if draw(st.booleans()):
        options["attn_mask"] = mask(*draw(st.sampled_from([(), (rows * dense.num_heads,)])), length, known)
    if draw(st.booleans()):
        options["key_padding_mask"] = mask(known) if batch is None else mask(batch, known)
    return dense, (query, key, value), options


@given(calls())
def test_attention_at_full_rank_is_the_dense_layer(call):
    dense, inputs, options = call
    low = full_rank(dense)
    assert isinstance(low, LowRankAttention)
    for one in (low, px.lowrank.merge(low)):
        out, weights = one(*inputs, **options)
        wanted, wanted_weights = dense(*inputs, **options)
        assert close(out, wanted)
        assert (weights is None) == (wanted_weights is None)
        assert weights is None or close(weights, wanted_weights)


def test_causal_attention_needs_no_mask():
    dense = nn.MultiheadAttention(8, 2, batch_first=True)
    low, x = full_rank(dense), torch.randn(3, 5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    wanted = dense(x, x, x, attn_mask=mask, need_weights=False)[0]
    for options in ({}, {"attn_mask": mask}):
        for weights in (False, True):
            assert close(low(x, x, x, is_causal=True, need_weights=weights, **options)[0], wanted)


@each("kept", list(itertools.product([False, True], repeat=4)))
def test_any_of_the_four_matrices_may_stay_full(kept):
    dense = nn.MultiheadAttention(12, 3)
    plan = px.lowrank.plan(dense)
    names = [entry.name for entry, stays in zip(plan, kept, strict=True) if stays]
    low = px.factorize(dense, plan.with_ranks({name: None for name in names}))
    x = torch.randn(4, 2, 12)
    merged = px.lowrank.merge(low)
    assert close(merged(x, x, x)[0], low(x, x, x)[0])
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in dense.parameters())
    for name in names:
        i = ["q_proj", "k_proj", "v_proj"].index(name) if name != "out_proj" else None
        pair = (merged, dense)
        a, b = (m.out_proj.weight if i is None else m.in_proj_weight[12 * i : 12 * i + 12] for m in pair)
        assert torch.equal(a, b)


def test_dropout_acts_in_training_only_and_gradients_reach_every_factor():
    torch.manual_seed(0)
    low, x = px.factorize(nn.MultiheadAttention(16, 2, dropout=0.5, add_bias_kv=True)), torch.randn(6, 3, 16)
    first, second = low(x, x, x)[0], low(x, x, x)[0]
    assert not torch.equal(first, second)
    first.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in low.parameters())
    low.eval()
    assert torch.equal(low(x, x, x)[0], low(x, x, x)[0])


def transformer(**options):
    torch.manual_seed(0)
    return nn.Transformer(16, 2, 2, 2, 32, dropout=0.0, batch_first=True, **options)


@pytest.mark.parametrize("first", [1, 4, 6])
@pytest.mark.parametrize("train", [True, False])
def test_a_transformer_takes_its_slow_path(first, train):
    dense = transformer().train(train)
    low = px.factorize(dense, 0.25, first=first)
    source, target = torch.randn(3, 5, 16), torch.randn(3, 4, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    options = {"tgt_mask": mask, "src_key_padding_mask": padding, "memory_key_padding_mask": padding}
    with torch.no_grad():
        out = low(source, target, **options)
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            assert close(px.lowrank.merge(low)(source, target, **options), out)
            assert close(full_rank(dense)(source, target, **options), dense(source, target, **options))
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


def test_merging_gives_encoders_their_fused_kernel_back():
    dense = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    low = px.factorize(dense, 0.25)
    assert not low.use_nested_tensor and dense.use_nested_tensor
    assert [layer.activation_relu_or_gelu for layer in (*low.layers, *dense.layers)] == [0, 0, 1, 1]
    merged = px.lowrank.merge(low)
    assert merged.use_nested_tensor and merged.layers[0].activation_relu_or_gelu == 1
    assert vars(merged).keys() == vars(dense).keys()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        assert close(merged(x), low(x))


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    low, inputs = px.factorize(transformer(), 0.25).eval(), (torch.randn(2, 5, 16), torch.randn(2, 4, 16))
    program = torch.export.export(low, inputs, strict=strict)
    assert close(program.module()(*inputs), low(*inputs))

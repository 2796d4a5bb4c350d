# SPDX-License-Identifier: Apache-2.0
"""Low-rank layers, and what factorize and merge keep."""

import copy
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import phalanx as px
from phalanx.lowrank.conv import LowRankConv
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.linear import LowRankLinear
from phalanx.lowrank.truncate import Truncate
from tests.cases import each
from tests.lowrank.full_rank import close, full_rank


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cnn():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(40, 16), nn.Linear(16, 16), nn.Linear(16, 40)
        self.head.weight = self.embed.weight

    def forward(self, words):
        return self.head(self.body(self.embed(words)).tanh())


@given(
    st.integers(1, 9), st.integers(1, 9), st.booleans(), st.sampled_from([(), (0,), (3,), (2, 3)]), st.integers(0, 9)
)
def test_linear_at_full_rank_is_the_dense_layer(columns, rows, bias, batch, seed):
    torch.manual_seed(seed)
    dense = nn.Linear(columns, rows, bias=bias)
    low = full_rank(dense)
    x = drawn(*batch, columns, seed=seed)
    assert isinstance(low, LowRankLinear) and close(low(x), dense(x))
    assert type(px.lowrank.merge(low)) is nn.Linear and close(px.lowrank.merge(low)(x), low(x))


@st.composite
def convolutions(draw):
    dims = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 3))
    size = st.integers(1, 3)
    kernel, dilation = (tuple(draw(size) for _ in range(dims)) for _ in range(2))
    stride = tuple(draw(size) for _ in range(dims))
    padding = draw(st.one_of(st.just("valid"), st.just("same"), st.tuples(*[st.integers(0, 2)] * dims)))
    if padding == "same":
        stride = (1,) * dims
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    inputs, outputs = groups * draw(st.integers(2, 4)), groups * draw(size)
    made = nn.Conv1d if dims == 1 else nn.Conv2d
    torch.manual_seed(draw(st.integers(0, 9)))
    # a convolution with one channel a group is depthwise
    return made(inputs, outputs, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@given(convolutions(), st.integers(0, 2), st.booleans())
def test_convolution_at_full_rank_is_the_dense_layer(dense, batch, strided):
    x = drawn(batch, dense.in_channels, *(9 for _ in dense.kernel_size))
    x = x.transpose(-1, 1).contiguous().transpose(-1, 1) if strided else x
    low = full_rank(dense)
    assert isinstance(low, LowRankConv)
    assert low(x).shape == dense(x).shape and close(low(x), dense(x))
    merged = px.lowrank.merge(low)
    assert repr(merged) == repr(dense) and close(merged(x), dense(x))
    if batch:
        assert close(low(x[0]), dense(x[0]))


def test_convolution_of_stride_two_and_one_point_steps_in_the_thin_factor():
    low = px.factorize(nn.Conv2d(16, 32, 1, stride=2), 0.25)
    thin = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: thin.append(tuple(t.shape)) or t, lambda t: t):
        low(drawn(1, 16, 8, 8))
    assert (1, 4, 4, 4) in thin


@given(st.integers(1, 12), st.integers(1, 8), st.integers(0, 2))
def test_embedding_at_full_rank_is_the_dense_layer(words, width, batch):
    dense = nn.Embedding(words, width, padding_idx=0)
    low, x = full_rank(dense), torch.arange(batch * 5).reshape(batch, 5) % words
    assert close(low(x), dense(x)) and close(px.lowrank.merge(low)(x), dense(x))
    assert px.lowrank.merge(low).padding_idx == 0
    if batch:
        low(torch.zeros(3, dtype=torch.long)).sum().backward()
        assert not low.v.grad.any()


@each(
    ("dtype", "tolerance"),
    [(torch.float16, 1e-2), (torch.bfloat16, 5e-2), (torch.float32, 1e-5), (torch.float64, 1e-12)],
)
def test_factors_have_the_dtype_of_the_weight(dtype, tolerance):
    dense = nn.Linear(12, 10).to(dtype)
    low = full_rank(dense)
    x = drawn(3, 12).to(dtype)
    assert {p.dtype for p in low.parameters()} == {dtype}
    assert close(low(x).double(), dense(x).double(), tolerance)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_truncation_leaves_the_tail_of_the_spectrum(rows, columns, rank, seed):
    rank = min(rank, rows, columns)
    w = drawn(1, rows, columns, seed=seed, dtype=torch.float64)
    v, u = Truncate("exact")(w, rank)
    tail = torch.linalg.svdvals(w[0])[rank:]
    assert torch.allclose(torch.linalg.matrix_norm(w[0] - v[0] @ u[0]), tail.norm(), atol=1e-9)
    assert torch.allclose(v[0].mT @ v[0], u[0] @ u[0].mT, atol=1e-9)  # both are diag(S)


@given(st.integers(20, 40), st.integers(20, 40), st.integers(1, 8))
def test_randomized_truncation_is_near_the_best_and_the_same_everywhere(rows, columns, rank):
    w = drawn(2, rows, columns, dtype=torch.float64) * torch.logspace(0, -2, columns, dtype=torch.float64)
    v, u = Truncate("randomized", seed=3)(w, rank)
    best = torch.linalg.svdvals(w)[:, rank:].norm(dim=1)
    assert (torch.linalg.matrix_norm(w - v @ u) <= 1.01 * best + 1e-12).all()
    torch.manual_seed(7)  # the global generator has no say
    again = Truncate("randomized", seed=3)(w.clone(), rank)
    assert torch.equal(v, again[0]) and torch.equal(u, again[1])


def test_gradients_reach_every_factor_and_the_merged_model_is_the_same():
    low = px.factorize(cnn(), 0.25)
    x = drawn(2, 3, 8, 8)
    F.cross_entropy(low(x), torch.tensor([1, 2])).backward()
    assert all(p.grad is not None and p.grad.any() for p in low.parameters())
    low.eval()
    merged = px.lowrank.merge(low)
    assert not any(isinstance(m, LowRank) for m in merged.modules()) and not merged.training
    assert close(merged(x), low(x))


def test_a_copy_shares_nothing_and_in_place_keeps_the_rest():
    dense = cnn()
    seen = []
    dense[6].register_forward_hook(lambda module, args, output: seen.append(module))
    dense[3].weight.requires_grad_(False)
    low = px.factorize(dense, 0.25)
    assert not {p.data_ptr() for p in low.parameters()} & {p.data_ptr() for p in dense.parameters()}
    assert isinstance(dense[6], nn.Linear) and not low[3].u.requires_grad and not low[3].v.requires_grad
    low(drawn(1, 3, 8, 8).repeat(2, 1, 1, 1))
    assert seen == [low[6]]
    scale, bias = dense[1].weight, dense[6].bias
    same = px.factorize(dense, 0.25, inplace=True)
    assert same is dense and same[1].weight is scale and same[6].bias is bias
    assert px.lowrank.merge(same, inplace=True) is dense and dense[6].bias is bias and type(dense[6]) is nn.Linear
    assert not px.lowrank.merge(low)[3].weight.requires_grad
    with pytest.raises(ValueError, match="itself a layer"):
        px.factorize(nn.Linear(20, 20), 0.25, inplace=True)


def test_tied_weights_stay_tied():
    words = torch.arange(6)
    for rules in ({}, {"classifier": False}, {"embedding": True}):
        dense = Tied()
        plan = px.lowrank.plan(dense, 0.25, **rules)
        low = px.factorize(dense, plan)
        assert sum(p.numel() for p in low.parameters()) == plan.parameters_after
        if "embedding" in rules:
            assert low.embed.u is low.head.u and low.embed.v is low.head.v
        else:
            assert low.head.weight is low.embed.weight and plan["head"].rank is None
        merged = px.lowrank.merge(low)
        assert merged.head.weight is merged.embed.weight and close(merged(words), low(words))
    assert close(full_rank(dense)(words), dense(words))


def test_one_module_at_two_places_stays_one():
    layer = nn.Linear(16, 16)
    low = px.factorize(nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(16, 4)), 0.25)
    assert isinstance(low[0], LowRankLinear) and low[0] is low[2]
    merged = px.lowrank.merge(low)
    assert type(merged[0]) is nn.Linear and merged[0] is merged[2]


def test_copies_pickles_and_states_of_factorized_models():
    low, x = px.factorize(cnn(), 0.25).eval(), drawn(2, 3, 8, 8)
    stored = io.BytesIO()
    torch.save(low, stored)
    stored.seek(0)
    other = px.factorize(cnn(), 0.25).eval()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(low.state_dict())
    for again in (copy.deepcopy(low), torch.load(stored, weights_only=False), other):
        assert torch.equal(again(x), low(x))


def test_channels_last_weights_have_channels_last_factors():
    dense = cnn().to(memory_format=torch.channels_last)
    low = px.factorize(dense, 0.25)
    x = drawn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert low[3].u.is_contiguous(memory_format=torch.channels_last) and not low[3].u.is_contiguous()
    assert low[3](low[:3](x)).is_contiguous(memory_format=torch.channels_last)
    assert not px.lowrank.merge(low)[3].weight.is_contiguous()


def test_code_that_asks_for_the_weight_gets_the_product():
    dense = nn.Linear(8, 6)
    low = full_rank(dense)
    assert close(low.weight, dense.weight)
    low.weight.sum().backward()
    assert low.u.grad.any() and low.v.grad.any()


def test_weights_that_are_not_finite_are_refused_by_name():
    dense = cnn()
    with torch.no_grad():
        dense[6].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"'6' cannot be factorized: .* not finite"):
        px.factorize(dense, 0.25)


def test_models_without_data_get_factors_without_data():
    with torch.device("meta"):
        dense = nn.Sequential(nn.Linear(8192, 8192), nn.Linear(8192, 10))
    low = px.factorize(dense, 0.25)
    assert (
        low[0].u.is_meta and sum(p.numel() for p in low.parameters()) == px.lowrank.plan(dense, 0.25).parameters_after
    )


def test_ddp_models_of_low_rank_and_unknown_decompositions_are_refused():
    low = px.factorize(cnn(), 0.25)
    with pytest.raises(ValueError, match=r"low-rank layers already .*'0'.*merge"):
        px.factorize(low, 0.25)
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = cnn()
    with pytest.raises(ValueError, match=r"give its \.module"):
        px.factorize(wrapped, 0.25)
    with pytest.raises(ValueError, match="svd must be 'auto' or 'exact' or 'randomized', got 'fast'"):
        px.factorize(cnn(), 0.25, svd="fast")


def test_an_empty_batch_goes_through():
    low = px.factorize(cnn(), 0.25).eval()
    assert low(torch.empty(0, 3, 8, 8)).shape == (0, 10)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    low, x = px.factorize(cnn(), 0.25).eval(), drawn(2, 3, 8, 8)
    program = torch.export.export(low, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},), strict=strict)
    assert close(program.module()(drawn(5, 3, 8, 8)), low(drawn(5, 3, 8, 8)))

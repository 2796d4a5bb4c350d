# SPDX-License-Identifier: Apache-2.0
"""Low-rank LSTM and GRU."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence

import phalanx as px
from phalanx.lowrank.recurrent import LowRankGru, LowRankLstm
from phalanx.lowrank.scan import GruScan, LstmScan, gru_steps, lstm_steps
from tests.cases import each
from tests.lowrank.full_rank import close, full_rank

FAMILIES = {nn.LSTM: LowRankLstm, nn.GRU: LowRankGru}


@st.composite
def stacks(draw):
    made = draw(st.sampled_from(sorted(FAMILIES, key=str)))
    torch.manual_seed(draw(st.integers(0, 9)))
    return made(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 5)),
        draw(st.integers(1, 3)),
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        bidirectional=draw(st.booleans()),
    ).double()


def states(dense, batch, draw):
    """Random initial states, or none."""
    if not draw(st.booleans()):
        return None
    ends = dense.num_layers * (2 if dense.bidirectional else 1)
    shape = (ends, dense.hidden_size) if batch is None else (ends, batch, dense.hidden_size)
    made = tuple(torch.randn(shape, dtype=torch.float64) for _ in range(2))
    return made if isinstance(dense, nn.LSTM) else made[0]


def tensors(result):
    """Output and last states, one after the other."""
    out, last = result
    out = out.data if isinstance(out, PackedSequence) else out
    return [out, *(last if isinstance(last, tuple) else (last,))]


def agree(dense, low, x, initial):
    """Same results with and without gradients, and same gradients of the input."""
    x = x.requires_grad_()
    packed = torch.is_tensor(x)
    for one in (low, px.lowrank.merge(low)):
        wanted, found = tensors(dense(x, initial)), tensors(one(x, initial))
        assert all(close(a, b, 1e-9) for a, b in zip(found, wanted, strict=True))
        if packed and wanted[0].numel():
            grads = [torch.autograd.grad(sum(t.sin().sum() for t in ts), x)[0] for ts in (wanted, found)]
            assert close(grads[1], grads[0], 1e-9)
    with torch.no_grad():
        again = tensors(low(x, initial))
    assert all(close(a, b, 1e-9) for a, b in zip(again, tensors(dense(x, initial)), strict=True))


@given(stacks(), st.integers(1, 4), st.sampled_from([None, 0, 1, 3]), st.data())
def test_at_full_rank_it_is_the_dense_stack(dense, length, batch, data):
    low = full_rank(dense)
    assert isinstance(low, FAMILIES[type(dense)])
    shape = (length, dense.input_size) if batch is None else (length, batch, dense.input_size)
    x = torch.randn(shape, dtype=torch.float64)
    if batch is not None and dense.batch_first:
        x = x.transpose(0, 1)
    agree(dense, low, x, states(dense, batch, data.draw))
    assert repr(px.lowrank.merge(low)) == repr(dense)


@given(stacks(), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_packed_sequences(dense, lengths, data):
    low = full_rank(dense)
    parts = [torch.randn(n, dense.input_size, dtype=torch.float64) for n in lengths]
    packed = pack_sequence(parts, enforce_sorted=False)
    initial = states(dense, len(lengths), data.draw)
    found, wanted = low(packed, initial), dense(packed, initial)
    assert all(close(a, b, 1e-9) for a, b in zip(tensors(found), tensors(wanted), strict=True))
    for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(found[0], field), getattr(wanted[0], field))


def test_gradients_through_packed_sequences():
    torch.manual_seed(0)
    for made in FAMILIES:
        dense = made(3, 4, 2, bidirectional=True).double()
        low, x = full_rank(dense), torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
        grads = []
        for model in (dense, low):
            packed = pack_padded_sequence(x, torch.tensor([2, 5, 3]), enforce_sorted=False)
            grads.append(torch.autograd.grad(sum(t.sin().sum() for t in tensors(model(packed))), x)[0])
        assert close(grads[1], grads[0], 1e-9)


@each("sizes", [(3, 3, 3), (4, 2, 1), (1,), (2, 0)])
@each("reverse", [False, True])
@each("low", [False, True])
def test_the_gradients_of_the_scans(sizes, reverse, low):
    rng, width, rank, n, b = torch.Generator().manual_seed(0), 3, 2, sum(sizes), sizes[0]

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)

    def factors(gates):
        return (drawn(gates * rank, width), drawn(gates, width, rank)) if low else (None, drawn(gates, width, width))

    lstm = (drawn(4, n, width), drawn(b, width), drawn(b, width), *factors(4), sizes, reverse)
    gru = (drawn(3, n, width), drawn(b, width), *factors(3), drawn(3, 1, width), sizes, reverse)
    for scan, steps, inputs in ((LstmScan.apply, lstm_steps, lstm), (GruScan.apply, gru_steps, gru)):
        assert torch.autograd.gradcheck(scan, inputs)
        assert all(torch.allclose(a, b) for a, b in zip(scan(*inputs), steps(*inputs), strict=True))


@pytest.mark.parametrize("made", FAMILIES)
def test_gradients_reach_every_factor_and_equal_those_of_plain_operations(made):
    torch.manual_seed(0)
    low = px.factorize(made(16, 12, 2, bidirectional=True), 0.25)
    x = torch.randn(5, 3, 16)
    tensors(low(x))[0].square().sum().backward()
    named = dict(low.named_parameters())
    assert all(p.grad is not None and p.grad.any() for p in named.values())
    # the product of the factors is a function of them, so the dense model's gradient gives theirs
    dense = px.lowrank.merge(low)
    tensors(dense(x))[0].square().sum().backward()
    for factor in low.factors:
        u, v = low.pair(factor)
        full = dense.get_parameter(factor.weight).grad.reshape(factor.copies, factor.rows, factor.columns)
        right, left = u.reshape(factor.copies, -1, factor.columns), v.reshape(factor.copies, factor.rows, -1)
        assert close(u.grad, (left.mT @ full).reshape(u.shape), 1e-4)
        assert close(v.grad, (full @ right.mT).reshape(v.shape), 1e-4)
    for name, parameter in dense.named_parameters():
        if name.startswith("bias"):
            assert close(named[name].grad, parameter.grad, 1e-4)


@pytest.mark.parametrize("made", FAMILIES)
def test_any_of_the_matrices_may_stay_full(made):
    torch.manual_seed(0)
    dense, x = made(8, 8, bias=True), torch.randn(4, 2, 8)
    names = [entry.name for entry in px.lowrank.plan(dense)]
    for kept in itertools.product([False, True], repeat=2):
        full = {name: None for name, stays in zip(names, kept, strict=True) if stays}
        low = px.factorize(dense, px.lowrank.plan(dense).with_ranks(full))
        assert close(tensors(px.lowrank.merge(low)(x))[0], tensors(low(x))[0])
        for name in full:
            assert torch.equal(low.get_parameter(name), dense.get_parameter(name))


def test_the_rank_is_that_of_each_gate():
    low = px.factorize(nn.LSTM(20, 40, bias=False), 0.25)
    shapes = {name: tuple(parameter.shape) for name, parameter in low.named_parameters()}
    assert shapes == {"u_ih_l0": (20, 20), "v_ih_l0": (160, 5), "u_hh_l0": (40, 40), "v_hh_l0": (160, 10)}


def test_dropout_acts_between_layers_in_training_only():
    torch.manual_seed(0)
    x = torch.randn(5, 2, 12)
    one, two = nn.LSTM(12, 12, 2, dropout=0.5), nn.LSTM(12, 12, 2, dropout=1.0)
    low = px.factorize(one, 0.25)
    assert not torch.equal(low(x)[0], low(x)[0])
    assert torch.equal(low.eval()(x)[0], low(x)[0])
    assert px.lowrank.merge(low).dropout == 0.5
    assert close(full_rank(two)(x)[0], two(x)[0])  # everything between the layers is dropped: no luck is involved


@pytest.mark.parametrize("made", FAMILIES)
def test_autocast_computes_in_bfloat16(made):
    torch.manual_seed(0)
    low, x = px.factorize(made(32, 32, 2), 0.25), torch.randn(6, 4, 32)
    wanted = tensors(low(x))[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = tensors(low(x))[0]
    assert found.dtype == torch.bfloat16 and close(found.float(), wanted, 3e-2)
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in low.parameters())


def test_wrong_inputs_are_refused():
    low = px.factorize(nn.LSTM(12, 12), 0.25)
    for x, initial, words in (
        (torch.randn(3, 2, 11), None, r"reads \(steps, 12\) or with a batch, got the shape \(3, 2, 11\)"),
        (torch.randn(0, 2, 12), None, "at least one time step"),
        (torch.randn(3, 2, 12), torch.zeros(1, 2, 12), r"needs 2 initial state"),
        (torch.randn(3, 2, 12), (torch.zeros(1, 3, 12),) * 2, r"of shape \(1, 2, 12\)"),
    ):
        with pytest.raises(ValueError, match=words):
            low(x, initial)
    with pytest.raises(
        ValueError, match=r"'weight_ih_l0' cannot be factorized: it projects its states \(proj_size=4\)"
    ):
        px.factorize(
            nn.LSTM(12, 12, proj_size=4), px.lowrank.plan(nn.LSTM(12, 12, proj_size=4)).with_ranks({"weight_ih_l0": 2})
        )


def test_export():
    low = px.factorize(nn.LSTM(12, 12, 2, batch_first=True), 0.25)
    x = torch.randn(2, 5, 12)
    program = torch.export.export(low, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    for batch in (2, 7):
        x = torch.randn(batch, 5, 12)
        assert close(program.module()(x)[0], low(x)[0])

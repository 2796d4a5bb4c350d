# SPDX-License-Identifier: Apache-2.0
import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx
from phalanx.core.layout import Layout
from phalanx.models.lstm import one_bias, perplexity
from tests.cases import draws


def model_of(width=5, layers=2, dropout=0.0, vocabulary=11, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expression = phalanx.models.tied_lstm(width=width, layers=layers, dropout=dropout)
        return expression.build(phalanx.data.Passage(4, vocabulary), vocabulary).double()


def by_the_book(model, x):
    """One gate, one layer and one word at a time."""
    lstm, width = model.lstm, model.lstm.hidden_size
    h, c = (torch.zeros(lstm.num_layers, len(x), width, dtype=torch.float64) for _ in range(2))
    scores = []
    for t in range(x.shape[1]):
        below = model.embedding.weight[x[:, t]]
        for layer in range(lstm.num_layers):
            w, u, b = (getattr(lstm, f"{n}_l{layer}") for n in ("weight_ih", "weight_hh", "bias_ih"))
            i, f, g, o = (below @ w.T + h[layer] @ u.T + b).split(width, dim=1)
            cell = f.sigmoid() * c[layer] + i.sigmoid() * g.tanh()
            below = o.sigmoid() * cell.tanh()
            h, c = h.clone(), c.clone()
            h[layer], c[layer] = below, cell
        scores.append(below @ model.embedding.weight.T + model.decoder.bias)
    return torch.stack(scores, dim=1)


@draws(20)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5))
def test_the_scores_are_those_of_the_textbook(batch, layers, length, width):
    model = model_of(width, layers)
    nn.init.normal_(model.decoder.bias)
    for layer in range(layers):
        nn.init.normal_(getattr(model.lstm, f"bias_ih_l{layer}"))
    x = torch.randint(11, (batch, length))
    torch.testing.assert_close(model(x), by_the_book(model, x))


@draws(20)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3))
def test_parts_with_the_state_carried_are_one_text(parts, layers):
    model, x = model_of(layers=layers), torch.randint(11, (3, sum(parts)))
    state, seen = None, []
    for part in x.split(parts, dim=1):
        scores, state = model.resume(part, state)
        seen.append(scores)
    torch.testing.assert_close(torch.cat(seen, dim=1), model(x))


def test_one_bias_a_gate_and_zeros_that_nothing_trains_or_sends():
    model = model_of()
    assert not any("bias_hh" in name for name, _ in model.named_parameters())
    assert not any("bias_hh" in name for name in (*model.state_dict(), *Layout.of(model).names))
    assert Layout.of(model).num_installed == 0
    model(torch.randint(11, (2, 3))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for layer in range(2):
        assert getattr(model.lstm, f"bias_hh_l{layer}").abs().max() == 0
        assert not getattr(model.lstm, f"bias_hh_l{layer}").requires_grad


def test_one_bias_survives_copies_casts_and_files(tmp_path):
    model, x = model_of(), torch.randint(11, (2, 3))
    want = model(x)
    torch.save(model.state_dict(), tmp_path / "weights")
    other = model_of(seed=1)
    assert not torch.allclose(other(x), want)
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.float().double()):
        torch.testing.assert_close(again(x), want, rtol=1e-6, atol=1e-6)
        assert again.decoder.weight is again.embedding.weight
    with torch.no_grad():
        other.lstm.bias_ih_l0.add_(1)
    assert not torch.allclose(other(x), want)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_bias_is_the_lstm_whose_second_bias_is_zero(bidirectional):
    lstm, x = nn.LSTM(3, 4, 2, bidirectional=bidirectional), torch.randn(5, 2, 3)
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if name.startswith("bias_hh"):
                bias.zero_()
    want, count = lstm(x)[0], sum(p.numel() for p in lstm.parameters())
    assert torch.equal(one_bias(lstm)(x)[0], want)
    assert sum(p.numel() for p in lstm.parameters()) == count - (1 + bidirectional) * 2 * 4 * 4


def test_weights_are_drawn_gate_by_gate():
    model = model_of(width=60)
    for gate in model.lstm.weight_ih_l1.chunk(4):
        # Xavier's bound of one square gate, not that of the four together
        assert 0.98 * math.sqrt(6 / 120) < gate.abs().max() <= math.sqrt(6 / 120)
    assert model.lstm.bias_ih_l0.abs().max() == 0 and model.embedding.weight.abs().max() <= 0.1


@draws(20)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 30))
def test_perplexity_carries_the_state_through_each_column(columns, part, extra):
    model, text = model_of(dropout=0.5), torch.randint(11, (2 * columns + extra,))
    rows = len(text) // columns
    x = text[: rows * columns].view(columns, rows)
    model.eval()
    loss = nn.functional.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    model.train()
    assert perplexity(model, text, part, columns) == pytest.approx(math.exp(loss.item()))
    assert model.training


def test_perplexity_needs_two_words_a_column():
    with pytest.raises(ValueError, match="a text of 7 words"):
        perplexity(model_of(), torch.zeros(7, dtype=torch.int64), count=4)

# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx
from phalanx.data.shape import END, START
from phalanx.models.transformer import Attention, positions
from phalanx.models.translate import translate
from tests.cases import draws, each


def model_of(vocabulary=12, width=8, heads=2, layers=2, dropout=0.0, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expression = phalanx.models.transformer(width=width, hidden=9, heads=heads, layers=layers, dropout=dropout)
        model = expression.build(phalanx.data.Pairs(6, vocabulary), vocabulary)
        # as drawn, tied words mostly repeat themselves
        nn.init.normal_(model.embedding.weight)
        return model.double().eval()


def pairs(batch, length, vocabulary=12):
    return torch.randint(4, vocabulary, (batch, 2, length))


@draws(15)
@given(st.integers(1, 3), st.integers(2, 6), st.data())
def test_a_word_sees_none_behind_it(batch, length, data):
    model, x = model_of(), pairs(batch, length)
    place = data.draw(st.integers(0, length - 2))
    other = x.clone()
    other[:, 1, place + 1 :] = 4 + (other[:, 1, place + 1 :] - 3) % 8
    got, want = model(other), model(x)
    torch.testing.assert_close(got[:, : place + 1], want[:, : place + 1])
    assert not torch.allclose(got[:, place + 1 :], want[:, place + 1 :])
    other = x.clone()
    other[:, 0, -1] = 4 + (other[:, 0, -1] - 3) % 8
    assert not torch.allclose(model(other)[:, 0], want[:, 0])


@draws(15)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_padding_changes_nothing(batch, length, more):
    model, x = model_of(), pairs(batch, length)
    padded = torch.cat([x, torch.zeros(batch, 2, more, dtype=torch.int64)], dim=2)
    torch.testing.assert_close(model(padded)[:, :length], model(x))
    target, source = x[:, 1], padded[:, 0]
    torch.testing.assert_close(model.scores(model.decode(target, source, model.encode(source))), model(x))


def test_an_empty_text_gives_numbers():
    x = pairs(2, 3)
    x[0, 0] = 0
    assert model_of()(x).isfinite().all()


def test_attention_is_pytorchs():
    ours = Attention(8, 2, 0.0).double()
    theirs = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.out.weight)
    x, seen, mask = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double(), torch.rand(3, 1, 4, 5) < 0.6
    mask[..., 0] = True
    want, _ = theirs(x, seen, seen, attn_mask=~mask.repeat_interleave(2, dim=1).flatten(0, 1))
    torch.testing.assert_close(ours(x, seen, mask), ours.norm(x + want))


def test_one_matrix_for_all_words_and_every_weight_learns():
    model = model_of(dropout=0.1).train()
    assert model.projection.weight is model.embedding.weight
    nn.functional.cross_entropy(model(pairs(4, 5)).flatten(0, 1), torch.randint(12, (20,))).backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in model.parameters())


def test_either_the_words_or_the_scores_are_scaled():
    model, x = model_of(), pairs(2, 5)
    assert (model.word_scale, model.score_scale) == (8**0.5, 1.0)
    other = phalanx.models.transformer(width=8, hidden=9, heads=2, layers=2, dropout=0.0, scaled="scores")
    other = other.build(phalanx.data.Pairs(6, 12), 12).double().eval()
    other.load_state_dict(model.state_dict())
    want = model(x)
    with torch.no_grad():
        other.embedding.weight.mul_(8**0.5)
    # the matrix is one: vectors as large as before, and scores too, by sqrt(8) / sqrt(8)
    torch.testing.assert_close(other(x), want)


def test_positions_by_their_formula():
    table = positions(30, 6)
    for t, i in itertools.product((0, 1, 29), range(3)):
        angle = t / 10_000 ** (2 * i / 6)
        assert table[t, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-6)


@torch.no_grad()
def log_likelihood(model, source, words):
    """Of a finished translation, its end included, given one text."""
    target = torch.tensor([[START, *words]])
    log = model.scores(model.decode(target, source, model.encode(source)))[0].log_softmax(dim=-1)
    return float(sum(log[i, word] for i, word in enumerate((*words, END))))


@each("seed", range(4))
@each("alpha", [0.0, 0.7, 2.0])
@torch.no_grad()
def test_a_wide_beam_finds_the_best_of_all_translations(seed, alpha):
    model, source = model_of(vocabulary=6, seed=seed), torch.tensor([[4, 5, 3], [5, 3, 0]])
    # of at most 3 words and the end: unknown, 4 and 5 are the words
    (got,), longest = translate(model, source[:1], width=200, longest=4, alpha=alpha), 4
    every = [w for n in range(longest) for w in itertools.product((1, 4, 5), repeat=n)]
    scored = {w: log_likelihood(model, source[:1], w) / (len(w) + 1) ** alpha for w in every}
    open_ended = itertools.product((1, 4, 5), repeat=longest)
    for words in open_ended:
        target = torch.tensor([[START, *words[:-1]]])
        log = model.scores(model.decode(target, source[:1], model.encode(source[:1])))[0].log_softmax(dim=-1)
        scored[words] = float(sum(log[i, word] for i, word in enumerate(words))) / longest**alpha
    assert tuple(got) == max(scored, key=scored.__getitem__)


@draws(15)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.integers(0, 3))
def test_a_text_is_translated_alike_in_any_batch(batch, width, longest, seed):
    model, source = model_of(seed=seed), torch.randint(4, 12, (batch, 5))
    together = translate(model, source, width, longest)
    assert together == [translate(model, row[None], width, longest)[0] for row in source]
    padded = torch.cat([source, torch.zeros(batch, 2, dtype=torch.int64)], dim=1)
    assert translate(model, padded, width, longest) == together
    assert all(len(words) <= longest and not {0, START, END} & set(words) for words in together)


def test_a_beam_of_one_takes_the_most_likely_word():
    model, source = model_of(seed=2), torch.randint(4, 12, (1, 5))
    words = [START]
    while len(words) < 7 and words[-1] != END:
        scores = model.scores(model.decode(torch.tensor([words]), source, model.encode(source)))[0, -1]
        scores[[0, START]] = -math.inf
        words.append(int(scores.argmax()))
    assert translate(model, source, width=1, longest=6) == [[w for w in words[1:] if w != END]]


def test_translating_leaves_the_mode_and_takes_no_text():
    model = model_of(dropout=0.5).train()
    source = torch.randint(4, 12, (2, 5))
    assert translate(model, source, longest=5) == translate(model, source, longest=5)
    assert model.training and translate(model, source[:0]) == []
    for wrong in ({"width": 0}, {"longest": 0}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="a beam search needs"):
            translate(model, source, **wrong)

# SPDX-License-Identifier: Apache-2.0
"""The training loop on data whose every token has a label: language models and translation."""

import json
import math
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import phalanx as px
from phalanx.core.expression import method
from phalanx.data.dataset import Dataset
from phalanx.data.passages import passages
from phalanx.data.shape import END, START, UNSCORED
from phalanx.training.model_state import fingerprint
from phalanx.training.score import assess, cross_entropy
from phalanx.training.trainer import Trainer


@method("round_and_round", "data", listed=False)
class RoundAndRound(px.data.Data):
    """1 2 3 1 2 3 ..."""

    context: int = 0

    def read(self):
        x, y = passages(1 + torch.arange(400) % 3, 5, self.context)
        return Dataset(self.expression_name, x, y, x[:7], y[:7], 4, vocabulary=4)

    def location(self):
        return "here"


@method("copies", "data", listed=False)
class Copies(px.data.Data):
    """Texts of one to five words, to be written again."""

    def read(self):
        rng = torch.Generator().manual_seed(0)
        x, y = torch.zeros(300, 2, 7, dtype=torch.int64), torch.full((300, 7), UNSCORED)
        for i, size in enumerate(torch.randint(1, 6, (300,), generator=rng).tolist()):
            words = torch.randint(4, 9, (size,), generator=rng)
            x[i, 0, : size + 2] = torch.tensor([START, *words, END])
            x[i, 1, : size + 1] = torch.tensor([START, *words])
            y[i, : size + 1] = torch.tensor([*words, END])
        return Dataset(self.expression_name, x, y, x[:50], y[:50], 9, vocabulary=9)

    def location(self):
        return "here"


SCHEME = px.parse("chain(reverse(), gather(dense()), median())")
LSTM = px.models.tied_lstm(width=12, layers=2, dropout=0.1)
TRANSFORMER = px.models.transformer(width=16, hidden=32, heads=2, layers=1, dropout=0.0)


def run_of(data, model, rounds=40, batch=60, lr=0.02, scheme=SCHEME, **fields):
    phase = px.Phase(px.training.gradient(batch=batch), scheme, px.optim.adam(lr=lr), rounds=rounds)
    return px.Run(data, model, (phase,), workers=5, byzantine=px.adversary.workers(workers=(1,)), **fields)


def test_a_language_model_learns():
    trainer = px.train(run_of(RoundAndRound(), LSTM, rounds=60))
    summary = trainer.summary()
    assert summary["accuracy"] > 0.95
    assert summary["perplexity"] == pytest.approx(math.exp(summary["test_loss"])) and summary["perplexity"] < 1.5
    assert "perplexity" not in px.train(px.parse(DIGITS)).summary()


DIGITS = (
    "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=20), chain(gather(dense()), mean()), rounds=1),), "
    "workers=2)"
)


def test_a_translator_learns():
    trainer = px.train(run_of(Copies(), TRANSFORMER, rounds=250, lr=0.01))
    assert trainer.summary()["accuracy"] > 0.8
    assert trainer.summary()["parameters"] == sum(p.numel() for p in trainer.model.parameters())


@pytest.mark.parametrize(("data", "model"), [(RoundAndRound(context=2), LSTM), (Copies(), TRANSFORMER)])
def test_a_run_resumes_to_the_same_bits(tmp_path, data, model):
    run = run_of(data, model, rounds=9, checkpoint_every=4)
    whole = px.train(run)

    def stop(line):
        if line["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted):
        px.train(run, folder=px.training.RunFolder(tmp_path / "run"), listener=stop)
    resumed = px.train(run, folder=px.training.RunFolder(tmp_path / "run"))
    assert resumed.rounds_done == 9 and fingerprint(resumed.model) == fingerprint(whole.model)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["perplexity"] == pytest.approx(math.exp(summary["test_loss"]))


def test_tied_weights_travel_once_and_stay_tied():
    trainer = Trainer(run_of(RoundAndRound(), LSTM), px.LocalCollective(5))
    assert trainer.layout.d == sum(p.numel() for p in trainer.model.parameters())
    before = trainer.model.decoder.weight.clone()
    trainer.run()
    assert trainer.model.decoder.weight is trainer.model.embedding.weight
    assert not torch.equal(trainer.model.decoder.weight, before)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 6), st.data())
def test_cross_entropy_leaves_out_what_is_not_scored(batch, length, kinds, data):
    scores = torch.randn(batch, length, kinds, dtype=torch.float64)
    some = st.lists(st.integers(-1, kinds - 1), min_size=length, max_size=length)
    labels = torch.tensor([data.draw(some) for _ in range(batch)])
    labels[labels < 0] = UNSCORED
    logs = scores.float().log_softmax(dim=-1)
    each = [-logs[i, j, labels[i, j]] for i in range(batch) for j in range(length) if labels[i, j] >= 0]
    want = torch.stack(each).sum() if each else torch.tensor(0.0)
    torch.testing.assert_close(cross_entropy(scores, labels, "sum"), want)
    if each:
        torch.testing.assert_close(cross_entropy(scores, labels), want / len(each))
    alone = labels[:, 0].clamp(min=0)
    assert torch.equal(cross_entropy(scores[:, 0], alone), F.cross_entropy(scores[:, 0].float(), alone))


@given(st.integers(1, 5), st.integers(2, 1000), st.floats(0, 0.49), st.integers(0, 99))
def test_smoothed_labels_share_with_the_other_classes(batch, classes, smoothing, seed):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, 2, classes, generator=rng)
    labels = torch.randint(classes, (batch, 2), generator=rng)
    want = torch.full_like(scores, smoothing / (classes - 1)).scatter(-1, labels[..., None], 1 - smoothing)
    each = -(want * scores.log_softmax(dim=-1)).sum(dim=-1)
    torch.testing.assert_close(cross_entropy(scores, labels, smoothing=smoothing), each.mean())
    torch.testing.assert_close(cross_entropy(scores, labels, "sum", smoothing), each.sum())
    labels[0, 0] = UNSCORED
    torch.testing.assert_close(cross_entropy(scores, labels, smoothing=smoothing), each.flatten()[1:].mean())


def test_smoothing_is_of_the_training_only():
    run = px.parse(DIGITS.replace("batch=20", "batch=20, smoothing=0.1"))
    smoothed, plain = Trainer(run, px.LocalCollective(2)), Trainer(px.parse(DIGITS), px.LocalCollective(2))
    assert smoothed.evaluate() == plain.evaluate() and px.parse(repr(run)) == run
    smoothed.run()
    plain.run()
    assert fingerprint(smoothed.model) != fingerprint(plain.model)
    with pytest.raises(ValueError, match=r"smoothing=0.95 leaves a label less than each of the other 9 classes"):
        px.train(px.training.amend(run, "work.smoothing", 0.95))
    with pytest.raises(ValueError, match=r"gradient needs smoothing in \[0, 1\), got smoothing=1"):
        px.training.gradient(smoothing=1)


def test_scores_that_are_not_one_for_each_label():
    for scores, labels in (((3, 4), (3, 2)), ((3, 2, 4), (3,)), ((3, 5, 4), (3, 2))):
        with pytest.raises(ValueError, match="choose another model"):
            cross_entropy(torch.zeros(scores), torch.zeros(labels, dtype=torch.int64))


@pytest.mark.parametrize(("data", "model"), [(RoundAndRound(context=3), LSTM), (Copies(), TRANSFORMER)])
def test_the_test_part_is_weighed_label_by_label(data, model):
    dataset = data.load()
    network = model.build(dataset.shape, dataset.num_classes)
    got = assess(network, dataset, torch.device("cpu"), "float32")
    scores, y = network(dataset.test_x), dataset.test_y
    scored = y != UNSCORED
    assert got[0] == pytest.approx(float((scores.argmax(dim=-1) == y)[scored].float().mean()))
    assert got[1] == pytest.approx(F.cross_entropy(scores[scored], y[scored]).item(), rel=1e-4)


def test_the_loop_scores_a_thousand_labels_at_a_time():
    sizes = []

    class Watched(torch.nn.Module):
        def forward(self, x):
            sizes.append(x.shape[0] * x.shape[-1])
            return torch.zeros(*x.shape, 4)

    ids = torch.ones(30, 300, dtype=torch.int64)
    assess(Watched(), Dataset("toy", ids, ids, ids, ids, 4, vocabulary=4), torch.device("cpu"), "float32")
    assert sum(sizes) == 9_000 and max(sizes) <= 1_000


@pytest.mark.parametrize("partition", [px.data.dirichlet(alpha=1.0), px.data.shards()])
def test_classes_of_tokens_are_not_shared_out(partition):
    with pytest.raises(ValueError, match=r"each token of these texts has one; choose iid\(\)"):
        px.train(run_of(RoundAndRound(), LSTM, partition=partition))


def test_a_classifier_refuses_a_passage():
    refused = r"mlp reads images, and the data are passages of 5 .*choose char_lstm\(\) or tied_lstm"
    with pytest.raises(ValueError, match=refused):
        px.train(run_of(RoundAndRound(), px.models.mlp()))
    with pytest.raises(ValueError, match="crop_flip changes images"):
        px.train(run_of(RoundAndRound(), LSTM, augment=px.data.crop_flip()))


def test_an_exchange_of_ones_own_leaves_constants_alone():
    model = LSTM.build(px.data.Passage(5, 4), 4)
    exchange = px.exchange(model, "chain(gather(dense()), mean())", world=px.LocalCollective(1))
    x = torch.tensor([[1, 2, 3]])
    model(x).square().sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    exchange()
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())
    assert exchange.layout.d == sum(p.numel() for p in model.parameters())

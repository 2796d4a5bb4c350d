# SPDX-License-Identifier: Apache-2.0
"""Pruning of dormant neurons, as work of a phase and as an exam, against its definition."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.backdoors.dormant import Pruner, before_fall, clean_samples, reader
from phalanx.training.evaluator import EvalContext
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.cases import each

EDGES = px.backdoors.rare_styles()
LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=3, batch=20)
DIGITS = px.data.digits().load()


def fitted(hidden=(24,), seed=0):
    """A network that knows the digits, some of whose neurons are of no use to it."""
    made = px.Run(
        px.data.digits(),
        px.models.mlp(hidden),
        (px.Phase(px.training.gradient(300), px.parse("reduce(dense())"), rounds=60),),
    )
    return copy.deepcopy(px.train(replace(made, workers=1, seed=seed, evaluate_every=60)).model)


MODEL = fitted()


def accuracy(model, x, y):
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).double().mean())


def by_definition(model, x, y, step, bound):
    """Which neurons of the last hidden layer go, one step after the other."""
    with torch.no_grad():
        hidden = model[2](model[1](model[0](x)))
    order = sorted(range(hidden.shape[1]), key=lambda i: (float(hidden[:, i].double().abs().mean()), i))
    gone, base = [], accuracy(model, x, y)
    for i in range(1, int(1 / step) + 1):
        now = order[: min(round(i * step * len(order)), len(order) - 1)]
        changed = copy.deepcopy(model)
        changed[3].weight.data[:, now] = 0
        if accuracy(changed, x, y) < base - bound - 1e-9:
            break
        gone = now
    return gone


@each("bound", [0.0, 0.02, 0.2, 1.0])
@each("step", [0.04, 0.3])
def test_the_most_dormant_neurons_go_until_accuracy_falls(bound, step):
    samples = clean_samples(DIGITS, 300, 7)
    x, y = DIGITS.train(samples)
    pruner = Pruner(MODEL, None, DIGITS, samples, "float32")
    gone = by_definition(MODEL, x, y, step, bound)
    count = pruner.most(step, bound)
    assert sorted(pruner.order[:count].tolist()) == sorted(gone)
    assert bound < 1 or count == round(min(23, int(1 / step) * step * 24))
    before = MODEL[3].weight.detach().clone()
    pruned = pruner.without(count)
    assert MODEL[3].weight.equal(before) and not pruned[3].weight[:, gone].any()
    kept = [i for i in range(24) if i not in gone]
    assert pruned[3].weight[:, kept].equal(before[:, kept])


def test_a_place_before_the_fall_asks_for_no_more_than_it_needs():
    asked = []

    def values(*numbers):
        for number in numbers:
            asked.append(number)
            yield number

    assert before_fall(values(0.9, 0.95, 0.86, 0.8, 0.99), 0.04) == 2 and asked == [0.9, 0.95, 0.86, 0.8]
    assert before_fall([0.5], 0.0) == 0 and before_fall([0.5, 0.4], 1.0) == 1


def test_a_channel_is_one_neuron_however_many_pixels_are_read():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(45, 10))
    samples = torch.arange(60)
    pruner = Pruner(model, None, DIGITS, samples, "float32")
    assert (pruner.layer, pruner.width) == ("4", 5)
    x, _ = DIGITS.train(samples)
    with torch.no_grad():
        seen = model[:3](x)
        torch.testing.assert_close(pruner.activation, seen.double().mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-7)
        seen[:, pruner.order[:2]] = 0
        torch.testing.assert_close(pruner.without(2)(x), model[3:](seen))


@pytest.mark.parametrize(
    ("model", "layer", "found"),
    [
        (px.models.mlp((7, 5)), None, ("5", 5)),
        (px.models.mlp((7, 5)), "3", ("3", 7)),
        (px.models.mlp(()), None, ("1", 64)),
        (px.models.lenet(channels=(3, 4), hidden=6), None, ("7", 4)),
        (px.models.lenet(channels=(3, 4), hidden=6), "9", ("9", 6)),
        (px.models.resnet18(), None, ("fc", 512)),
    ],
    ids=repr,
)
def test_the_layer_that_reads_the_neurons(model, layer, found):
    built = model.build((1, 16, 16) if "lenet" in repr(model) else (1, 8, 8), 10)
    if "resnet" in repr(model):
        found = next(name for name, m in built.named_modules() if isinstance(m, nn.Linear)), found[1]
    assert reader(built, layer) == found


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"'0' is no layer of Sequential .* choose from 1, 3"):
        reader(MODEL, "0")
    with pytest.raises(ValueError, match="has no fully connected layer"):
        reader(nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), None)
    with pytest.raises(ValueError, match="given 10000 clean examples"):
        clean_samples(DIGITS, 10_000, 0)


def pruned_run(work, scheme="chain(gather(dense()), mean())", clients=None, **options):
    before = px.federated.fedavg(LOCAL, 2)
    after = px.Phase(
        work, px.parse(scheme), px.optim.sgd(1.0), 1, clients=px.training.all_clients() if clients is None else clients
    )
    options = {"partition": px.data.dirichlet(1.0, least=20), "seed": 3} | options
    return px.Run(px.data.digits(), px.models.mlp((20,)), (before, after), workers=5, **options)


def test_a_phase_of_one_round_silences_the_neurons_and_leaves_all_else():
    made = pruned_run(px.backdoors.prune(bound=0.05, step=0.1, clean=200), clients=px.federated.uniform(1))
    before = px.train(replace(made, phases=made.phases[:1])).model
    lines = []
    after = px.train(made, listener=lines.append).model
    x, y = DIGITS.train(clean_samples(DIGITS, 200, 3))
    gone = by_definition(before, x, y, 0.1, 0.05)
    assert gone
    expected = copy.deepcopy(before)
    expected[3].weight.data[:, gone] = 0
    assert all(a.equal(b) for a, b in zip(after.parameters(), expected.parameters(), strict=True))
    assert lines[-1]["loss"] == pytest.approx(float(nn.functional.cross_entropy(expected(x), y).detach()), rel=1e-5)


def test_an_odd_number_of_clients_votes_by_the_median():
    made = pruned_run(px.backdoors.prune(bound=0.1, step=0.1, clean=None), "chain(gather(dense()), median())")
    before = px.train(replace(made, phases=made.phases[:1])).model
    votes = torch.zeros(20)
    for part in made.partition.parts(DIGITS, 5, 3):
        x, y = DIGITS.train(part)
        votes[by_definition(before, x, y, 0.1, 0.1)] += 1
    after = px.train(made).model
    silent = ~after[3].weight.any(dim=0)
    assert silent.equal(votes >= 3) and 0 < int(silent.sum()) < 20
    assert after[3].weight[:, ~silent].equal(before[3].weight[:, ~silent])


def test_batchnorm_statistics_stay():
    work = px.backdoors.prune(bound=1.0, step=0.5, clean=50)
    made = px.Run(
        px.data.digits(),
        px.models.vgg11_bn(),
        (px.Phase(work, px.parse("reduce(dense())"), px.optim.sgd(1.0), 1),),
        workers=1,
    )
    trainer = Trainer(made)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.run()
    name, width = reader(trainer.model, None)
    for key, value in trainer.model.state_dict().items():
        assert value.equal(before[key]) == (key != f"{name}.weight")
    lost = ~trainer.model.state_dict()[f"{name}.weight"].any(dim=0)
    assert int(lost.sum()) == width - 1


def sitting(model, seed=0):
    return EvalContext(model, DIGITS, 3, seed, "float32", lambda: DIGITS.train_y.new_zeros(0).split(1))


def test_the_exam_asks_at_every_share_and_changes_nothing():
    inner = px.backdoors.backdoor(EDGES, px.data.digits())
    exam = px.backdoors.after_pruning(inner, bound=0.05, step=0.25, clean=150)
    sha = fingerprint(MODEL)
    found = exam.evaluate(sitting(MODEL))
    assert fingerprint(MODEL) == sha and exam.evaluate(sitting(MODEL)) == found
    assert found["shares"] == [0, 0.25, 0.5, 0.75, 23 / 24]
    assert found["examined"][0] == inner.evaluate(sitting(MODEL))
    x, y = DIGITS.train(clean_samples(DIGITS, 150, 0))
    for bound in (0.0, 0.05, 1.0):
        stopped = replace(exam, bound=bound).evaluate(sitting(MODEL))["stopped"]
        assert round(24 * found["shares"][stopped]) == len(by_definition(MODEL, x, y, 0.25, bound))
    test_x, test_y = DIGITS.test(slice(None))
    for share, clean, tested, asked in zip(*(found[k] for k in list(found)[:4]), strict=True):
        changed = copy.deepcopy(MODEL)
        order = Pruner(MODEL, None, DIGITS, clean_samples(DIGITS, 150, 0), "float32").order
        changed[3].weight.data[:, order[: round(24 * share)]] = 0
        assert accuracy(changed, x, y) == pytest.approx(clean)
        assert accuracy(changed, test_x, test_y) == pytest.approx(tested)
        assert asked == inner.evaluate(sitting(changed))


def test_a_run_reports_what_pruning_would_do():
    lines = []
    exam = px.backdoors.after_pruning(px.backdoors.backdoor(EDGES, px.data.digits()), step=0.5, clean=100)
    made = px.Run(
        px.data.digits(),
        px.models.mlp((8,)),
        (px.federated.fedavg(LOCAL, 1),),
        workers=4,
        evaluators=(exam,),
        evaluate_every=1,
    )
    watched = px.train(made, listener=lines.append)
    found = lines[-1]["examined"][repr(exam)]
    assert found["shares"] == [0, 0.5, 7 / 8] and found["accuracy"][0] == lines[-1]["accuracy"]
    assert fingerprint(watched.model) == fingerprint(px.train(replace(made, evaluators=())).model)


@each(
    ("text", "sentence"),
    [
        ("prune(bound=1.5)", r"bound in \[0, 1\]"),
        ("prune(step=0.0)", r"step in \(0, 1\]"),
        ("prune(clean=0)", "clean >= 1"),
        ("after_pruning(parity(), bound=-0.1)", r"after_pruning needs a bound"),
    ],
)
def test_numbers_that_prune_nothing_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        px.parse(text)


def test_a_layer_that_is_not_there_is_told_before_the_first_round():
    with pytest.raises(ValueError, match="'9' is no layer"):
        Trainer(
            replace(
                pruned_run(px.backdoors.prune(layer="9")), phases=pruned_run(px.backdoors.prune(layer="9")).phases[1:]
            )
        )

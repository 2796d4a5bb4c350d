# SPDX-License-Identifier: Apache-2.0
"""Pixel triggers, distributed triggers, Neurotoxin and flipped labels."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.layout import Layout
from phalanx.core.trees import copy_tree
from phalanx.training.context import WorkerContext

DIGITS = px.data.digits()
LOCAL = px.federated.local_training(px.optim.sgd(0.1), epochs=2, batch=20)
SQUARE = px.backdoors.trigger(target=0, size=2, gap=0, count=60)
BARS = px.backdoors.trigger(target=0, shape="bars", size=2, gap=1, count=60)


def poisoned(edges, local=LOCAL, clean=60):
    return px.backdoors.poisoned(local, edges, DIGITS, clean=clean)


def run(adversary, edges, attackers=(0,), rounds=15, scheme="chain(gather(dense()), mean())", **options):
    phase = px.Phase(LOCAL, px.parse(scheme), px.optim.sgd(1.0), rounds, adversary=adversary)
    return px.train(
        px.Run(
            DIGITS,
            px.models.mlp((32,)),
            (phase,),
            workers=8,
            byzantine=px.adversary.workers(attackers),
            evaluators=() if edges is None else (px.backdoors.backdoor(edges, DIGITS),),
            **options,
        )
    )


def success(trained):
    (found,) = trained.summary()["examined"].values()
    return found["attack_success"]


def test_a_square_is_bright_and_all_else_is_as_it_was():
    data, edges = DIGITS.load(), SQUARE.load(DIGITS.load())
    assert isinstance(data.test_x, torch.Tensor)
    assert bool((edges.train_x[:, :, :2, :2] == data.levels).all()) and len(edges) == 60
    assert bool((edges.true_y != 0).all()) and bool((edges.train_y == 0).all())
    others = data.test_y != 0
    assert torch.equal(edges.test_x[:, :, 2:], data.test_x[others][:, :, 2:]) and len(edges.test_x) == int(others.sum())
    # copies: the data set has no stamp
    assert not bool((data.test_x[:, :, :2, :2] == data.levels).all())


def test_the_parts_of_the_bars_make_the_whole():
    parts = [replace(BARS, part=i).load(DIGITS.load()) for i in range(4)]
    whole = BARS.load(DIGITS.load())
    joined = torch.stack([part.train_x for part in parts]).amax(0)
    assert torch.equal(joined, whole.train_x)
    assert all(torch.equal(part.test_x, whole.test_x) for part in parts)


def test_each_attacker_has_its_part():
    attack = px.backdoors.dba(poisoned(BARS))
    parts = [repr(attack.of(unit).edges).partition("part=")[2][0] for unit in (0, 3, 6)]
    assert parts == ["0", "3", "2"]
    with pytest.raises(ValueError, match="dba divides trigger"):
        px.backdoors.dba(poisoned(SQUARE))
    with pytest.raises(ValueError, match="dba divides trigger"):
        px.backdoors.dba(poisoned(replace(BARS, part=1)))


def test_a_trigger_is_learnt_and_only_under_attack():
    attacked, plain = run(poisoned(SQUARE), SQUARE, (0, 1)), run(None, SQUARE, (0, 1))
    assert success(attacked) > 0.6 and success(plain) < 0.1
    assert attacked.summary()["accuracy"] > plain.summary()["accuracy"] - 0.08


def test_four_parts_make_a_backdoor_of_the_whole():
    attackers = (0, 1, 2, 3)
    assert success(run(px.backdoors.dba(poisoned(BARS)), BARS, attackers)) > 0.9
    assert success(run(None, BARS, attackers)) < 0.1


def context_of(model, data, round_in_phase=0):
    return WorkerContext(
        model, Layout.of(model), data, None, "float32", False, key=(0, 0), round_in_phase=round_in_phase
    )


def test_neurotoxin_leaves_the_entries_that_changed_most_alone():
    data = DIGITS.load()
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 10)
    model = torch.nn.Sequential(torch.nn.Flatten(), linear)
    attack = px.backdoors.neurotoxin(poisoned(SQUARE), ratio=0.25)
    context = context_of(model, data)
    samples = attack.samples(px.data.iid(), data, 1, 0, 0)[0]
    row = torch.zeros(context.layout.d)
    _, memory = attack.compute_row(context, 0, samples, row, {})
    assert int((row != 0).sum()) > 600
    # the honest change: the first columns of the weights, and one bias
    with torch.no_grad():
        linear.weight[:, :16] += 1.0
        linear.bias[:2] += 1.0
    row = torch.zeros(context.layout.d)
    before = copy_tree(model.state_dict())
    _, memory = attack.compute_row(context, 0, samples, row, memory)
    weight, bias = row[:640].reshape(10, 64), row[640:]
    assert bool((weight[:, :16] == 0).all()) and bool((bias[:2] == 0).all()) and int((weight != 0).sum()) > 300
    # no hook stays, and the model is as it was
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_neurotoxin_changes_what_an_attacker_sends():
    adversary = px.backdoors.neurotoxin(poisoned(SQUARE), ratio=0.1)
    whole = run(adversary, None, rounds=4)
    plain = run(poisoned(SQUARE), None, rounds=4)
    weights = [torch.cat([p.flatten() for p in trained.model.parameters()]) for trained in (whole, plain)]
    assert not torch.equal(*weights)


def test_flipped_labels_are_c_minus_one_minus_y_and_of_the_training_part_only():
    from phalanx.backdoors.label_flip import _flipped

    data = DIGITS.load()
    flipped = _flipped(px.backdoors.label_flip(LOCAL), data)
    assert torch.equal(flipped.train_y, 9 - data.train_y) and torch.equal(flipped.test_y, data.test_y)
    one = _flipped(px.backdoors.label_flip(LOCAL, source=7, target=1), data)
    changed = one.train_y != data.train_y
    assert torch.equal(changed, data.train_y == 7) and bool((one.train_y[changed] == 1).all())
    unscored = replace(data, train_y=data.train_y.masked_fill(data.train_y == 3, -100))
    assert int((_flipped(px.backdoors.label_flip(LOCAL), unscored).train_y == -100).sum()) == int(
        (data.train_y == 3).sum()
    )
    with pytest.raises(ValueError, match=r"has a label 12, and digits.* has 10 classes"):
        _flipped(px.backdoors.label_flip(LOCAL, source=12, target=1), data)


def test_flipped_labels_harm_the_mean_and_hardly_the_trimmed_mean():
    flip = px.backdoors.label_flip(px.training.gradient(batch=160))
    accuracy = {}
    for rule in ("mean()", "trimmed_mean(f=3)"):
        phase = px.Phase(
            px.training.gradient(batch=160),
            px.parse(f"chain(gather(dense()), {rule})"),
            px.optim.sgd(0.3),
            60,
            adversary=flip,
        )
        accuracy[rule] = px.train(
            px.Run(DIGITS, px.models.mlp((32,)), (phase,), workers=8, byzantine=px.adversary.workers((0, 1, 2)))
        ).summary()["accuracy"]
    assert accuracy["trimmed_mean(f=3)"] > accuracy["mean()"] - 0.02
    assert accuracy["mean()"] < 0.93


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: px.backdoors.trigger(size=0), "size >= 1"),
        (lambda: px.backdoors.trigger(part=1), "has parts 0 to 3 with shape='bars'"),
        (lambda: px.backdoors.trigger(target=-1), "needs a class"),
        (lambda: px.backdoors.trigger(gap=-1), "gap >= 0"),
        (lambda: px.backdoors.trigger(size=9).load(DIGITS.load()), "takes 11x11 pixels.*images of 8x8"),
        (lambda: px.backdoors.trigger(count=10**6).load(DIGITS.load()), "needs 1000000 training images of classes"),
        (lambda: px.backdoors.label_flip(LOCAL, source=1), "needs two classes or none"),
        (lambda: px.backdoors.label_flip(LOCAL, source=1, target=1), "needs two classes or none"),
        (lambda: px.backdoors.neurotoxin(LOCAL, ratio=1.0), r"ratio in \(0, 1\)"),
    ],
)
def test_wrong_settings_are_one_sentence(build, words):
    with pytest.raises(ValueError, match=words):
        build()

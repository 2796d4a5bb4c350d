# SPDX-License-Identifier: Apache-2.0
"""Settings of optimizers, their learning rates, and their moments as a tree."""

import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.training.optim import moments, set_moments
from tests.cases import each

NAMES = ("sgd", "adam", "adamw")


@each("name", NAMES)
@each(("setting", "words"), [("lr=0.0", "needs lr > 0"), ("weight_decay=-0.1", "needs weight_decay >= 0")])
def test_settings_out_of_range_are_refused(name, setting, words):
    with pytest.raises(ValueError, match=f"{name} {words}, got {setting}"):
        px.parse(f"{name}({setting})")


@each("name", NAMES[1:])
@each("setting", ["beta1=1.0", "beta2=-0.1"])
def test_betas_are_below_one(name, setting):
    with pytest.raises(ValueError, match=rf"{name} needs betas in \[0, 1\)"):
        px.parse(f"{name}({setting})")


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_is_that_of_the_schedule(name):
    optimizer = px.parse(f"{name}(lr=0.5, schedule=decay(by=0.1, every=2))")
    assert [optimizer.rate(index, 6) for index in range(4)] == pytest.approx([0.5, 0.5, 0.05, 0.05])
    assert px.parse(f"{name}(lr=0.5)").rate(3, 6) == 0.5 and px.optim.assign_weights().rate(3, 6) == 1.0


@pytest.mark.parametrize("optimizer", ["sgd(lr=0.1)", "sgd(lr=0.1, momentum=0.9)", "adam(lr=0.1)", "adamw(lr=0.1)"])
def test_a_fresh_optimizer_goes_on_from_moments(optimizer):
    made = px.parse(optimizer)

    def steps(parameter, optimizer, which):
        for step in which:
            parameter.grad = torch.linspace(-1, 1, 5) + step
            optimizer.step()

    whole, cut = (nn.Parameter(torch.ones(5)) for _ in range(2))
    steps(whole, made.build([whole]), range(4))
    first, second = made.build([cut]), made.build([cut])
    steps(cut, first, range(2))
    set_moments(second, moments(first))
    steps(cut, second, range(2, 4))
    assert cut.equal(whole)

# SPDX-License-Identifier: Apache-2.0
"""Measured times in plans: what is measured, at which inputs, and what stays as it was. Never how long it took."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import phalanx as px
from phalanx.lowrank import layer_timing
from phalanx.lowrank.layer_timing import Call, step_seconds, timed
from tests.cases import each
from tests.lowrank.test_plan import Language, mlp
from tests.lowrank.test_pretrained import Small


@pytest.fixture
def steps(monkeypatch):
    """Every measurement, as the forms and the call, taking a second for each parameter."""
    seen = []

    def counted(forms, call, autocast):
        seen.append((forms, call, autocast))
        return tuple(float(sum(p.numel() for p in form.parameters())) for form in forms)

    monkeypatch.setattr(layer_timing, "step_seconds", counted)
    return seen


def test_columns_totals_and_text():
    plan = timed(mlp(), px.lowrank.plan(mlp()), torch.zeros(2, 64))
    assert all(entry.seconds > 0 and entry.seconds_after > 0 for entry in plan)
    assert plan["4"].rank is None and plan["4"].seconds == plan["4"].seconds_after
    assert plan.seconds == sum(entry.seconds for entry in plan)
    assert px.lowrank.Plan.from_yaml(plan.to_yaml()) == plan
    head, last = str(plan).splitlines()[0], str(plan).splitlines()[-1]
    assert "MB a step" in head and "ms" in head and f"{1e3 * plan.seconds_after:,.2f}" in last
    assert "ms" not in str(px.lowrank.plan(mlp())).splitlines()[0]
    assert (plan.step_bytes, plan.step_bytes_after) == (4 * plan.parameters, 4 * plan.parameters_after)
    assert plan["0"].step_bytes_after == 4 * plan["0"].parameters_after
    assert px.lowrank.plan(mlp()).seconds is None and px.lowrank.plan(mlp()).seconds_after is None
    other = plan.with_ranks({"0": 3})
    assert other["0"].seconds == plan["0"].seconds and other["0"].seconds_after is other.seconds_after is None
    wrong = plan.to_yaml().replace(f"seconds: {plan['0'].seconds}", "seconds: -1")
    with pytest.raises(ValueError, match="layer '0' of the plan needs numbers >= 0 of seconds"):
        px.lowrank.Plan.from_yaml(wrong)


def test_layers_of_equal_kind_and_input_are_measured_once(steps):
    model = nn.Sequential(nn.Linear(16, 32), *[nn.Linear(32, 32) for _ in range(3)], nn.Linear(32, 4))
    plan = px.lowrank.plan(model, sample_input=torch.zeros(2, 16), measure=True)
    assert [len(forms) for forms, *_ in steps] == [2, 2, 1]
    assert plan["1"].seconds == plan["3"].seconds == 32 * 33
    steps.clear()
    model[2].weight.requires_grad_(False)
    px.lowrank.plan(model, sample_input=torch.zeros(2, 16), measure=True)
    assert len(steps) == 4


def test_layers_are_measured_at_the_inputs_that_they_saw(steps):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3))
    x = torch.zeros(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    px.lowrank.plan(model, sample_input=x, measure=True, autocast=torch.bfloat16)
    (_, first, narrow), (_, second, _) = steps
    assert first.args[0].shape == (2, 3, 9, 9) and first.args[0].stride() == x.stride()
    assert not first.args[0].requires_grad and second.args[0].requires_grad
    assert second.args[0].dtype == narrow == torch.bfloat16 and second.args[0].shape == (2, 8, 4, 4)
    assert second.args[0].grad_fn is None


def test_a_layer_that_runs_twice_counts_twice_and_one_that_does_not_run_has_no_time(steps):
    layer = nn.Linear(16, 16)
    twice = px.lowrank.plan(
        nn.Sequential(layer, layer, nn.Linear(16, 4)), sample_input=torch.zeros(1, 16), measure=True
    )
    assert twice["0"].seconds == 2 * 16 * 17
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4))
    model.register_module("idle", nn.Linear(16, 16))
    model.forward = lambda x: model[1](model[0](x))
    plan = px.lowrank.plan(model, classifier=False, sample_input=torch.zeros(1, 16), measure=True)
    assert plan["idle"].seconds is None and plan["idle"].rank == 4 and plan.seconds_after is not None


def test_whole_layers_and_ties_are_measured_and_marked_together(steps):
    plan = timed(Small(), px.lowrank.plan(Small()), torch.zeros(2, 3, 5))
    measured = ["conv", "rnn.weight_ih_l0", "attention.q_proj", "body", "head"]
    assert [e.name for e in plan if e.seconds is not None] == measured
    forms = next(forms for forms, *_ in steps if isinstance(forms[0], nn.MultiheadAttention))
    assert len(forms) == 2 and forms[1].q_proj.v.shape == (32, 8)
    whole = timed(Language(), px.lowrank.plan(Language(), embedding=True), torch.zeros(5, 2, dtype=torch.long))
    slow = {"embed": 1.0, "head": 3.0, "rnn": 1.0}
    entries = tuple(replace(e, seconds=1.0, seconds_after=slow[e.layer]) if e.seconds else e for e in whole)
    assert set(layer_timing.slower(px.lowrank.Plan(entries))) == {"embed", "head"}


models = [
    (mlp, lambda: torch.zeros(2, 64)),
    (Small, lambda: torch.randn(2, 3, 5)),
    (Language, lambda: torch.zeros(4, 2, dtype=torch.long)),
    (lambda: nn.GRU(12, 12), lambda: pack_padded_sequence(torch.randn(4, 2, 12), [4, 2])),
    (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False),
        lambda: {"src": torch.randn(5, 2, 16), "src_key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)},
    ),
    (lambda: nn.MultiheadAttention(16, 2), lambda: (torch.randn(5, 2, 16),) * 3),
    (lambda: nn.Embedding(30, 16, sparse=True), lambda: torch.zeros(3, dtype=torch.long)),
]


@pytest.mark.parametrize(("make", "sample"), models)
@each("rules", [{}, {"rank": "auto", "ratio": 0.25}])
def test_measuring_leaves_the_model_and_the_random_numbers_as_they_are(make, sample, rules):
    torch.manual_seed(0)
    model = make()
    model.register_forward_hook(lambda *_: None)
    model.train()
    state, modes = {n: t.clone() for n, t in model.state_dict().items()}, [m.training for m in model.modules()]
    x, rng = sample(), torch.get_rng_state()
    plan = px.lowrank.plan(model, embedding=True, classifier=False, sample_input=x, measure=True, **rules)
    assert torch.equal(torch.get_rng_state(), rng) and [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and len(model._forward_hooks) == 1
    assert plan.seconds > 0 and plan.seconds_after > 0
    px.factorize(model, plan)


def test_one_tensor_given_three_times_is_one_in_the_measured_call():
    x = torch.randn(3, 2, 16, requires_grad=True) * 2
    call = Call.of((x, x, x), {"key_padding_mask": None, "attn_mask": torch.zeros(3, 3)})
    assert call.args[0] is call.args[1] is call.args[2] and len(call.leaves) == 2
    assert call.args[0].is_leaf and call.args[0].requires_grad
    other = Call.of((x, x.clone(), x), {"key_padding_mask": None, "attn_mask": torch.zeros(3, 3)})
    assert call.about != other.about
    assert call.about == Call.of((x * 3,) * 3, {"key_padding_mask": None, "attn_mask": torch.ones(3, 3)}).about


def test_frozen_layers_and_models_without_data():
    model = mlp().requires_grad_(False)
    assert timed(model, px.lowrank.plan(model), torch.zeros(2, 64)).seconds > 0
    assert len(step_seconds([nn.Linear(3, 3)], Call.of((torch.zeros(2, 3),), {}), torch.bfloat16)) == 1
    with torch.device("meta"):
        empty = mlp()
    with pytest.raises(ValueError, match=r"'0\.weight' has no data, so no layer can be timed"):
        timed(empty, px.lowrank.plan(empty), torch.zeros(2, 64))

# SPDX-License-Identifier: Apache-2.0
"""The rules, the text and the errors of plans."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import phalanx as px
from phalanx.lowrank.layer import LowRank
from phalanx.lowrank.plan import Entry
from phalanx.lowrank.planner import _repeated
from tests.cases import each


def mlp():
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(50, 32), nn.LSTM(32, 32, 2), nn.Linear(32, 50)
        self.head.weight = self.embed.weight

    def forward(self, words):
        return self.head(self.rnn(self.embed(words))[0])


def ranks(model, *args, **kwargs):
    return {entry.name: entry.rank for entry in px.lowrank.plan(model, *args, **kwargs)}


@given(st.floats(0.01, 1.0), st.integers(1, 40), st.integers(1, 40))
def test_the_rank_is_that_of_the_spec_and_nothing_grows(ratio, rows, columns):
    entry = px.lowrank.plan(nn.Linear(columns, rows, bias=False), ratio, classifier=False)[""]
    rank = max(1, int(min(rows, columns) * ratio))
    assert entry.rank == (rank if rank * (rows + columns) < rows * columns else None)
    low = px.factorize(nn.Linear(columns, rows, bias=False), ratio, classifier=False)
    assert sum(p.numel() for p in low.parameters()) == entry.parameters_after <= rows * columns


def test_the_first_layers_the_kept_ones_and_the_classifier_stay_full():
    model = mlp()
    assert ranks(model) == {"0": 12, "2": 8, "4": None}
    assert ranks(model, classifier=False) == {"0": 12, "2": 8, "4": 2}
    assert ranks(model, first=2) == {"0": None, "2": 8, "4": None}
    assert ranks(model, 0.5, keep=["2"]) == {"0": 24, "2": None, "4": None}
    assert ranks(model, keep=["[02]"]) == {"0": None, "2": None, "4": None}
    assert px.lowrank.plan(model, first=2)["0"].reason == "layer 1, before first=2"
    assert px.lowrank.plan(model, keep=["2"])["2"].reason == "kept by '2'"


def test_a_block_counts_as_its_layers_and_its_last_one_is_no_classifier():
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64), 2, enable_nested_tensor=False)
    assert None not in ranks(stack).values()
    second = ranks(stack, first=4)  # one attention and two linear layers in the first block
    assert all((rank is None) == name.startswith("layers.0.") for name, rank in second.items())
    kept = ranks(stack, keep=["layers.1.self_attn"])
    assert [name for name, rank in kept.items() if rank is None] == [
        f"layers.1.self_attn.{part}_proj" for part in ("q", "k", "v", "out")
    ]
    deep = ranks(nn.LSTM(32, 32, 2), first=2)
    assert [name for name, rank in deep.items() if rank] == ["weight_ih_l1", "weight_hh_l1"]


def test_what_has_no_low_rank_form_is_listed_with_the_reason():
    masked = nn.Linear(20, 20)
    prune.l1_unstructured(masked, "weight", 0.5)

    class Mine(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "depthwise": nn.Conv2d(16, 16, 3, groups=16),
            "volume": nn.Conv3d(16, 16, 3),
            "pruned": masked,
            "normed": nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)),
            "mine": Mine(20, 20),
            "projected": nn.LSTM(20, 20, proj_size=4),
            "bounded": nn.Embedding(30, 20, max_norm=1.0),
            "words": nn.Embedding(30, 20),
            "thin": nn.Linear(30, 1),
        }
    )
    plan = px.lowrank.plan(model, classifier=False)
    wanted = {
        "depthwise": "depthwise",
        "volume": "no low-rank form",
        "pruned": "computed, by pruning",
        "normed": "parametrized",
        "mine": "subclass of Linear",
        "projected.weight_hh_l0": "proj_size=4",
        "bounded": "max_norm",
        "words": "asked for",
        "thin": "no smaller, 31 for 30",
    }
    for name, words in wanted.items():
        assert plan[name].rank is None and words in plan[name].reason, name
    assert plan.parameters == sum(p.numel() for p in model.parameters())
    with pytest.raises(ValueError, match=r"cannot be copied .*inplace=True"):  # a pruned weight is no leaf
        px.factorize(model, 0.25)
    low = px.factorize(model, 0.25, inplace=True)
    assert not any(isinstance(module, LowRank) for module in low.modules())
    for name in ("depthwise", "projected.weight_hh_l0", "bounded", "mine"):
        with pytest.raises(ValueError, match=f"layer '{re.escape(name)}' cannot be factorized"):
            px.factorize(model, plan.with_ranks({name: 1}))


def test_tied_weights_are_full_with_the_reason_and_count_once():
    plan = px.lowrank.plan(Language(), classifier=False)
    assert plan["head"].reason == "tied with embed.weight" and plan["head"].tied == "embed"
    assert plan["head"].parameters == 0 and plan.parameters == sum(p.numel() for p in Language().parameters())
    asked = px.lowrank.plan(Language(), embedding=True)
    assert asked["head"].rank == asked["embed"].rank == 8
    with pytest.raises(ValueError, match=r"'head' shares its weight .*give all of them one rank"):
        px.factorize(Language(), plan.with_ranks({"head": 4}))
    with pytest.raises(ValueError, match="shares its weight"):
        px.factorize(Language(), asked.with_ranks({"head": 4}))


def test_multiply_accumulates_of_a_sample():
    plan = px.lowrank.plan(
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1, stride=2), nn.Flatten(), nn.Linear(32 * 16, 64), nn.Linear(64, 10)
        ),
        sample_input=torch.randn(1, 3, 8, 8),
    )
    assert [entry.macs for entry in plan] == [16 * 32 * 27, 512 * 64, 640]
    assert [entry.macs_after for entry in plan] == [16 * 6 * (27 + 32), 16 * (512 + 64), 640]
    words = px.lowrank.plan(Language(), sample_input=torch.zeros(5, 2, dtype=torch.long))
    assert words["embed"].macs == 0 and words["rnn.weight_hh_l1"].macs == 10 * 4 * 32 * 32
    assert words["rnn.weight_hh_l1"].macs_after == 10 * 4 * 8 * 64
    attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=24)
    counted = px.lowrank.plan(
        attention, sample_input=(torch.randn(5, 2, 32), torch.randn(7, 2, 24), torch.randn(7, 2, 24))
    )
    assert [entry.positions for entry in counted] == [10, 14, 14, 10]
    named = {"query": torch.randn(5, 2, 32), "key": torch.randn(7, 2, 24), "value": torch.randn(7, 2, 24)}
    assert px.lowrank.plan(attention, sample_input=named) == counted and attention.training


names = st.text(max_size=12)


@given(st.lists(st.tuples(names, st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), names, names), max_size=5))
def test_a_plan_survives_its_text(rows):
    entries = [Entry(n, kind, (2 * a, b), rank or None, why, 2, positions=a) for n, a, b, rank, kind, why in rows]
    plan = px.lowrank.Plan(tuple(entries), -3)
    assert px.lowrank.Plan.from_yaml(plan.to_yaml()) == plan


def test_an_edited_plan_is_obeyed_and_may_leave_layers_out():
    model = mlp()
    text = px.lowrank.plan(model).to_yaml().replace("rank: 8", "rank: 20").replace("rank: 12", "rank: full")
    low = px.factorize(model, px.lowrank.Plan.from_yaml(text))
    assert isinstance(low[0], nn.Linear) and low[2].v.shape == (32, 20)
    only = px.lowrank.Plan.from_yaml("format: 1\nlayers: [{name: '2', kind: linear, shape: [32, 48], rank: 1}]")
    assert px.factorize(model, only)[2].u.shape == (1, 48) and isinstance(px.factorize(model, only)[0], nn.Linear)


@each(
    ("old", "new", "words"),
    [
        ("name: '2'", "name: '3'", "'3' is not in the model"),
        ("name: '2'", "name: '0'", "'0' twice"),
        ("name: '2'", "name: 2", "layer 1 of the plan needs a name in quotes"),
        ("rank: 8", "rank: 33", "'2' takes ranks from 1 to 32, the plan has 33"),
        ("rank: 8", "rank: 0", "'2' of the plan needs a rank >= 1 or full, got 0"),
        ("rank: 8", "rank: half", "'2' of the plan needs a rank >= 1 or full, got 'half'"),
        ("rank: 8", "rank: yes", "'2' of the plan needs a rank >= 1 or full, got True"),
        ("rank: 8", "rnk: 8", "'2' of the plan has unknown fields \\['rnk'\\]"),
        ("[32, 48]", "[32, 49]", "'2' has shape and copies \\[32, 48\\] x 1, the plan has \\[32, 49\\]"),
        ("[32, 48]", "32", "'2' of the plan needs a shape"),
        ("kind: linear, shape: [32, 48]", "kind: conv, shape: [32, 48]", "'2' is of kind 'linear'"),
        ("format: 1", "format: 2", "format 2"),
        ("layers:", "layer:", "no list of layers"),
        ("layers:", "layers: [", "not YAML"),
        ("others: 90", "other: 90", "unknown fields"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_name_of_the_layer(old, new, words):
    text = px.lowrank.plan(mlp()).to_yaml()
    assert old in text
    with pytest.raises(ValueError, match=words):
        px.factorize(mlp(), px.lowrank.Plan.from_yaml(text.replace(old, new)))


def test_numbers_out_of_range_and_patterns_without_a_layer_are_refused():
    for wrong in ({"ratio": 0.0}, {"ratio": 1.5}, {"first": 0}, {"keep": ["head*"]}, {"keep": "0"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            px.lowrank.plan(mlp(), **wrong)
    with pytest.raises(ValueError, match="a plan says by itself"):
        px.factorize(mlp(), px.lowrank.plan(mlp()), first=2)
    with pytest.raises(ValueError, match=r"no layer '22'; did you mean 2\?"):
        px.lowrank.plan(mlp()).with_ranks({"22": 3})
    with pytest.raises(ValueError, match="no shape yet"):
        px.lowrank.plan(nn.LazyLinear(3))


def test_the_table_has_the_totals():
    plan = px.lowrank.plan(mlp(), sample_input=torch.zeros(1, 64))
    lines = str(plan).splitlines()
    assert len(lines) == len(plan) + 3
    total = sum(p.numel() for p in mlp().parameters())
    assert (
        f"{total:,}" in lines[-1] and f"{plan.parameters_after:,}" in lines[-1] and f"{plan.macs_after:,}" in lines[-1]
    )


def test_two_blocks_of_a_class_are_repeated_and_one_is_not():
    def block():
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    assert _repeated(nn.Sequential(block(), block()), "0.0")
    assert not _repeated(nn.Sequential(block(), nn.Linear(8, 8)), "0.0")
    assert _repeated(nn.ModuleDict({"a": nn.ModuleList([block(), block()])}), "a.1.0")

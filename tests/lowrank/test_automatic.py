# SPDX-License-Identifier: Apache-2.0
"""Ranks that a plan chooses from the spectrum of the weights, and the budget that it keeps."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.lowrank.factor import Factor
from phalanx.lowrank.layer_timing import LayerTimer
from phalanx.lowrank.ranks import Choice, choices, spend_budget
from phalanx.lowrank.spectrum import energies, rank_for, stable_rank
from tests.cases import each
from tests.lowrank.test_plan import Language, mlp
from tests.lowrank.test_pretrained import Small


def with_spectrum(rows, columns, values, copies=1, seed=0):
    """A matrix, or several on top of each other, with these singular values."""
    rng, made = torch.Generator().manual_seed(seed), []
    for _ in range(copies):
        u, v = (torch.linalg.qr(torch.randn(n, len(values), generator=rng)).Q for n in (rows, columns))
        made.append(u * torch.tensor(values, dtype=torch.float32) @ v.mT)
    return torch.cat(made)


def linear(rows, columns, values, seed=0):
    layer = nn.Linear(columns, rows)
    with torch.no_grad():
        layer.weight.copy_(with_spectrum(rows, columns, values, seed=seed))
    return layer


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.floats(-30, 30), st.integers(0, 99))
def test_energies_and_stable_rank_are_those_of_the_singular_values(copies, rows, columns, power, seed):
    w = torch.randn(copies, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    squares = torch.linalg.svdvals(w).square()
    wanted = squares.sum(0) / squares.sum()
    assert torch.allclose(torch.tensor(energies(w * 10.0**power), dtype=torch.float64), wanted, atol=1e-9)
    assert stable_rank(w * 10.0**power) == pytest.approx(float((squares.sum(1) / squares[:, 0]).mean()))


def test_stable_rank_of_long_weights_and_of_hostile_ones():
    w = torch.randn(1, 600, 900, generator=torch.Generator().manual_seed(0))  # no gap above the second value
    assert stable_rank(w) == pytest.approx(600 * 900 / float(torch.linalg.matrix_norm(w, 2)) ** 2, rel=2e-3)
    assert stable_rank(torch.zeros(2, 3, 4)) == 0 and energies(torch.zeros(2, 3, 4)) == [0.0] * 3
    assert stable_rank(torch.ones(1, 600, 700)) == pytest.approx(1, abs=1e-3)
    assert stable_rank(torch.full((1, 3, 4), 1e38)) == pytest.approx(1) and rank_for([0.0, 0.0], 0.9) == 1
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="entries that are not finite"):
            stable_rank(torch.full((1, 2, 2), wrong))
    with pytest.raises(ValueError, match="no data"):
        energies(torch.empty(1, 2, 2, device="meta"))


def best(options, budget):
    """The most energy within a budget, by trying everything."""
    together = itertools.product(*options)
    return max(sum(c.kept for c in chosen) for chosen in together if sum(c.cost for c in chosen) <= budget)


spectra = st.lists(st.floats(0, 1), min_size=2, max_size=5).map(lambda gains: sorted(gains, reverse=True))


@given(st.lists(st.tuples(spectra, st.integers(1, 7)), min_size=1, max_size=4), st.integers(0, 60))
def test_a_budget_is_spread_best_up_to_the_step_that_does_not_fit(rows, spare):
    options = []
    for gains, cost in rows:
        kept = list(itertools.accumulate(gains))
        ranks = [Choice(r, r * cost, kept[r - 1]) for r in range(1, len(gains))]
        options.append([*ranks, Choice(None, len(gains) * cost - cost // 2, kept[-1])])
    budget = sum(own[0].cost for own in options) + spare
    chosen = spend_budget(options, budget)
    kept, cost = sum(c.kept for c in chosen), sum(c.cost for c in chosen)
    assert cost <= budget and all(c in own for c, own in zip(chosen, options, strict=True))
    most = max(own[-1].kept - own[0].kept for own in options)
    assert best(options, budget) <= kept + most + 1e-9
    if all(c is own[-1] for c, own in zip(chosen, options, strict=True)):
        assert best(options, budget) == pytest.approx(kept)


@given(st.lists(spectra, min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 60))
def test_a_budget_of_equal_costs_is_spread_best(rows, cost, spare):
    options = [[Choice(r, r * cost, sum(gains[:r])) for r in range(1, len(gains) + 1)] for gains in rows]
    budget = cost * len(rows) + spare
    assert sum(c.kept for c in spend_budget(options, budget)) == pytest.approx(best(options, budget))


@given(st.lists(st.tuples(spectra, st.integers(1, 7)), min_size=1, max_size=4))
def test_nothing_keeps_more_for_the_parameters_of_each_step_of_the_way(rows):
    options = [[Choice(r, r * cost, sum(own[:r])) for r in range(1, len(own) + 1)] for own, cost in rows]
    least = sum(own[0].cost for own in options)
    slopes = sorted(((-gain / cost, cost) for own, cost in rows for gain in own[1:] if gain > 0), key=lambda s: s[0])
    for spent in itertools.accumulate((cost for _, cost in slopes), initial=least):
        assert sum(c.kept for c in spend_budget(options, spent)) == pytest.approx(best(options, spent))


def test_the_choices_of_a_matrix_end_with_the_dense_one():
    own = choices([0.6, 0.3, 0.1], Factor("", "w", (3, 4)), 1)
    assert [(c.rank, c.cost) for c in own] == [(1, 7), (None, 12)] and own[-1].kept == pytest.approx(1)
    assert choices([1.0], Factor("", "w", (1, 4)), 1) == [Choice(None, 4, 1.0)]


@each("ratio", [0.05, 0.25, 0.5])
@pytest.mark.parametrize("make", [mlp, Small, Language, lambda: Small(tied=False), lambda: nn.LSTM(24, 24, 2)])
@each("rules", [{}, {"embedding": True}, {"first": 2}])
def test_a_budget_is_never_exceeded_and_no_rank_falls_below_half(make, ratio, rules):
    torch.manual_seed(0)
    model = make()
    uniform, made = px.lowrank.plan(model, ratio, **rules), px.lowrank.plan(model, ratio, rank="auto", **rules)
    assert made.parameters_after <= uniform.parameters_after and made.parameters == uniform.parameters
    for old, new in zip(uniform, made, strict=True):
        assert old.rank is not None or new.rank is None
        assert new.rank is None or old.rank is None or new.rank >= max(1, old.rank // 2)
    low = px.factorize(model, made)
    assert sum(p.numel() for p in low.parameters()) == made.parameters_after


def test_a_budget_goes_where_the_energy_is():
    flat, steep = [1.0] * 32, [2.0**-i for i in range(32)]
    model = nn.Sequential(linear(32, 32, flat), linear(32, 32, steep), nn.Linear(32, 10))
    made = px.lowrank.plan(model, 1 / 4, rank="auto")
    assert made["0"].rank == 12 and made["1"].rank == 4  # half of 8 is the least
    assert made["1"].reason == "99.6% of the energy, in the budget of ratio 0.25"
    scaled = nn.Sequential(linear(32, 32, [1e3 * s for s in flat]), linear(32, 32, steep), nn.Linear(32, 10))
    assert [e.rank for e in px.lowrank.plan(scaled, 1 / 4, rank="auto")] == [e.rank for e in made]


def test_ranks_by_energy_and_by_the_stable_rank_of_the_start():
    model = nn.Sequential(linear(64, 48, [1.0] * 5), linear(64, 64, [1.0] * 64), nn.Linear(64, 10))
    by_energy = px.lowrank.plan(model, rank="auto")
    assert by_energy["0"].rank == 5 and by_energy["0"].reason == "0.9 of the energy"
    assert by_energy["1"].rank is None and "factors of rank 58 are no smaller" in by_energy["1"].reason
    assert px.lowrank.plan(model, rank="auto", energy=0.5)["0"].rank == 3
    start = px.lowrank.stable_ranks(
        nn.Sequential(linear(64, 48, [1.0] * 48), linear(64, 64, [1.0] * 64), nn.Linear(64, 10))
    )
    compared = px.lowrank.plan(model, rank="auto", initial=start)
    assert compared["0"].rank == 5 and compared["0"].reason == "stable rank 5, at the start 48"
    assert compared["1"].rank is None
    assert px.lowrank.plan(model, rank="auto", initial={"0": 10.0})["0"].rank == 24  # 5 * 48 / 10
    assert px.lowrank.plan(model, rank="auto", initial={"0": 0.0}) == by_energy  # zeros have no scale
    with pytest.raises(ValueError, match=r"no layer '00' .*choose from 0, 1, 2"):
        px.lowrank.plan(model, rank="auto", initial={"00": 1.0})


def test_gates_groups_attention_and_ties_have_one_rank():
    torch.manual_seed(0)
    lstm = nn.LSTM(24, 24)
    with torch.no_grad():
        lstm.weight_hh_l0.copy_(with_spectrum(24, 24, [1.0, 1.0, 1.0], copies=4))
    assert px.lowrank.plan(lstm, rank="auto")["weight_hh_l0"].rank == 3
    grouped = nn.Conv2d(16, 32, 3, groups=2)
    with torch.no_grad():
        grouped.weight.copy_(with_spectrum(16, 72, [1.0, 1.0], copies=2).reshape(grouped.weight.shape))
    assert px.lowrank.plan(grouped, rank="auto")[""].rank == 2 and px.lowrank.stable_ranks(grouped)[
        ""
    ] == pytest.approx(2)
    attention = nn.MultiheadAttention(32, 4)
    with torch.no_grad():
        attention.in_proj_weight[32:64].copy_(with_spectrum(32, 32, [1.0] * 4))
    parts = px.lowrank.plan(attention, rank="auto")
    assert parts["k_proj"].rank == 4 and parts["q_proj"].rank is None
    tied = Language()
    with torch.no_grad():
        tied.embed.weight.copy_(with_spectrum(50, 32, [1.0] * 6))
    for chosen in ({}, {"ratio": 0.25}):
        made = px.lowrank.plan(tied, rank="auto", embedding=True, **chosen)
        assert made["head"].rank == made["embed"].rank >= 4 and made["head"].tied == "embed"
        px.factorize(tied, made)


def test_the_first_layers_that_hold_little_stay_full():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), linear(128, 128, [1.0]), linear(128, 128, [1.0]))
    model.append(nn.Linear(128, 10))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    for chosen in ({}, {"ratio": 0.25}):
        made = px.lowrank.plan(model, rank="auto", **chosen)
        assert made["0"].rank is None and made["0"].reason == "of the first layers, which hold under 1% together"
        assert made["2"].rank is not None
    assert px.lowrank.plan(model, rank="auto", first=1)["0"].rank == 1


def test_hostile_weights_are_planned_or_refused_by_name():
    model = mlp()
    with torch.no_grad():
        model[0].weight.zero_()
        model[2].weight.copy_(with_spectrum(32, 48, [5.0]))
    made = px.lowrank.plan(model, 1 / 4, rank="auto")
    assert made["0"].rank == 6 and made["2"].rank is not None
    assert px.lowrank.plan(model, rank="auto")["0"].rank == px.lowrank.plan(model, rank="auto")["2"].rank == 1
    px.factorize(model, made)
    for chosen in ({}, {"ratio": 0.25}, {"initial": {"2": 3.0}}):
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"layer '2' has no .*rank.*not finite|layer '2' has no spectrum: .* not"):
            px.lowrank.plan(model, rank="auto", **chosen)
    with torch.device("meta"), pytest.raises(ValueError, match="layer '0' has no spectrum: its weight has no data"):
        px.lowrank.plan(mlp(), rank="auto")
    assert px.lowrank.plan(model, 1 / 4)["2"].rank == 8  # a ratio does not look at the weights


def test_arguments_that_do_not_go_together_are_refused():
    for wrong, words in [
        ({"rank": "best"}, "rank must be 'ratio' or 'auto', got 'best'"),
        ({"energy": 0.0}, "energy=0.0"),
        ({"energy": 1.5}, "energy=1.5"),
        ({"initial": {"0": 1.0}}, "for rank='auto' without a ratio"),
        ({"initial": {"0": 1.0}, "rank": "auto", "ratio": 0.25}, "for rank='auto' without a ratio"),
        ({"initial": {"0": float("nan")}, "rank": "auto"}, "got nan for '0'"),
        ({"measure": True}, "give sample_input"),
        ({"autocast": torch.bfloat16}, "give measure=True"),
    ]:
        with pytest.raises(ValueError, match=words):
            px.lowrank.plan(mlp(), **wrong)


def slow(names):
    """A measurement in which these layers take twice as long factorized, the others half."""

    def seconds(self, name, ranks):
        low = any(ranks.values())
        return 1.0, (2.0 if name in names else 0.5) if low else 1.0

    return seconds


def test_slower_layers_stay_full_and_the_budget_is_kept(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(linear(16, 16, [1.0]), *[nn.Linear(64, 64) for _ in range(2)], nn.Linear(64, 10))
    x = torch.zeros(1, 16)
    monkeypatch.setattr(LayerTimer, "__init__", lambda self, *_: None)
    monkeypatch.setattr(LayerTimer, "_layer", slow({"0"}))
    monkeypatch.setattr("phalanx.lowrank.planner.count_positions", lambda *_: {})
    marked = px.lowrank.plan(model, 1 / 4, sample_input=x, measure=True)
    assert marked["0"].rank == 4 and marked["0"].reason == "ratio 0.25; slower here: 2,000.00 ms for 1,000.00 ms"
    made = px.lowrank.plan(model, 1 / 4, rank="auto", sample_input=x, measure=True)
    assert made["0"].rank is None and made["0"].reason == "slower here: 2,000.00 ms for 1,000.00 ms"
    assert made.parameters_after <= marked.parameters_after and (made.seconds, made.seconds_after) == (4.0, 3.0)
    # what holds half of all cannot stay full within a quarter
    monkeypatch.setattr(LayerTimer, "_layer", slow({"1"}))
    made = px.lowrank.plan(model, 1 / 4, rank="auto", sample_input=x, measure=True)
    assert made["1"].rank is not None and made["1"].reason.endswith("slower here: 2,000.00 ms for 1,000.00 ms")
    assert made.parameters_after <= marked.parameters_after
    low = nn.Sequential(linear(64, 64, [1.0]), linear(64, 64, [1.0]), nn.Linear(64, 10))
    made = px.lowrank.plan(low, rank="auto", sample_input=x, measure=True)
    assert (made["0"].rank, made["1"].rank) == (1, None)

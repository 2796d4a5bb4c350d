# SPDX-License-Identifier: Apache-2.0
"""Min-Max, Min-Sum, the attacks of Fang et al. and free-riders, against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.stack import Stack
from tests.cases import draws


def forged(attack, rows, byzantine=(0, 3)):
    stack, _ = attack(
        Stack.of(rows), None, px.Round(byzantine=frozenset(byzantine), world=px.LocalCollective(len(rows)))
    )
    honest = rows[[i for i in range(len(rows)) if i not in byzantine]]
    return stack.rows[list(byzantine)], honest, stack.rows


def rows_of(n, d=6, seed=0, shift=1.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@given(st.sampled_from(["std", "unit", "sign"]), st.integers(3, 9), st.integers(0, 99))
@draws(60)
def test_min_max_is_as_far_as_the_diameter_allows(direction, n, seed):
    sent, honest, _ = forged(px.attacks.min_max(direction), rows_of(n, seed=seed), (0,))
    diameter = float(torch.cdist(honest, honest).max())
    distances = (sent[0] - honest).norm(dim=1)
    assert float(distances.max()) == pytest.approx(diameter, rel=1e-9)
    # one step further on it would be an outlier, and it points away from the mean
    mean = honest.mean(0)
    assert float(((mean + 1.01 * (sent[0] - mean)) - honest).norm(dim=1).max()) > diameter
    away = {"std": -honest.std(0), "unit": -mean, "sign": -torch.sign(mean)}[direction]
    assert float(torch.cosine_similarity(sent[0] - mean, away, dim=0)) == pytest.approx(1.0, abs=1e-9)


@given(st.sampled_from(["std", "unit", "sign"]), st.integers(3, 9), st.integers(0, 99))
@draws(60)
def test_min_sum_has_the_sum_of_the_worst_honest_row(direction, n, seed):
    sent, honest, _ = forged(px.attacks.min_sum(direction), rows_of(n, seed=seed), (0,))
    limit = float(torch.cdist(honest, honest).square().sum(1).max())
    assert float((sent[0] - honest).square().sum()) == pytest.approx(limit, rel=1e-9)


def test_equal_honest_rows_leave_no_room_to_hide():
    rows = torch.ones(6, 4)
    for attack in (px.attacks.min_max(), px.attacks.min_sum("unit"), px.attacks.min_max("sign")):
        assert torch.equal(forged(attack, rows)[0], torch.ones(2, 4)), attack


@given(st.integers(4, 9), st.floats(1.5, 5), st.integers(0, 99))
@draws(40)
def test_fang_goes_beyond_all_honest_values_against_their_mean(n, b, seed):
    sent, honest, _ = forged(px.attacks.fang(b), rows_of(n, seed=seed, shift=0.2))
    mean, least, largest = honest.mean(0), honest.min(0).values, honest.max(0).values
    for row in sent:
        assert bool((row[mean > 0] <= least[mean > 0]).all()) and bool((row[mean <= 0] >= largest[mean <= 0]).all())
        beyond = torch.where(mean > 0, least - row, row - largest)
        reach = torch.where(mean > 0, least, largest).abs() * (b - 1)
        assert bool((beyond <= reach + 1e-12).all())
    assert not torch.equal(sent[0], sent[1])


def test_fang_moves_the_trimmed_mean_further_than_alie():
    rows = rows_of(20, 200, shift=0.5)
    moved = {}
    for attack in (px.attacks.fang(), px.attacks.alie()):
        _, honest, everything = forged(attack, rows, (0, 4, 9, 15))
        moved[attack] = float((px.aggregators.trimmed_mean(4).aggregate(everything) - honest.mean(0)).norm())
    assert moved[px.attacks.fang()] > 1.5 * moved[px.attacks.alie()]


@pytest.mark.parametrize("shift", [0.05, 1.0])
def test_krum_takes_the_row_that_is_made_for_it(shift):
    sent, honest, everything = forged(px.attacks.fang_krum(), rows_of(20, 100, shift=shift), (0, 4, 9, 15))
    taken = px.aggregators.krum(4).aggregate(everything)
    assert torch.equal(taken, sent[0])
    assert float(taken @ honest.mean(0)) < 0
    # twice as long, and Krum does not take it
    everything[[0, 4, 9, 15]] *= 2
    assert not torch.equal(px.aggregators.krum(4).aggregate(everything), everything[0])


def test_a_free_rider_sends_nothing_or_less_and_less_noise():
    rows = rows_of(5, 4000)
    assert torch.equal(forged(px.attacks.free_rider(), rows)[0], torch.zeros(2, 4000, dtype=torch.float64))
    attack = px.attacks.free_rider(std=0.5, decay=0.5)
    for index in (0, 3, 99):
        round = px.Round(index, byzantine=frozenset({2}), world=px.LocalCollective(5))
        sent = attack(Stack.of(rows), None, round)[0].rows[2]
        assert float(sent.std()) == pytest.approx(0.5 * (index + 1) ** -0.5, rel=0.05)


def test_rows_that_are_not_finite_are_no_part_of_what_is_hidden_among():
    rows = rows_of(6)
    rows[1] = float("nan")
    for attack in (px.attacks.min_max(), px.attacks.min_sum()):
        assert bool(forged(attack, rows)[0].isfinite().all()), attack
    everything = torch.full((4, 3), float("nan"))
    assert torch.equal(forged(px.attacks.min_max(), everything)[0], torch.zeros(2, 3))


@pytest.mark.parametrize(
    "build",
    [
        lambda: px.parse("min_max(direction='mean')"),
        lambda: px.parse("min_sum(direction='up')"),
        lambda: px.attacks.fang(1.0),
        lambda: px.attacks.fang_krum(0.0),
        lambda: px.attacks.free_rider(-1.0),
        lambda: px.attacks.free_rider(decay=float("inf")),
    ],
)
def test_wrong_settings_are_one_sentence(build):
    with pytest.raises(ValueError, match=r"needs|direction must be"):
        build()

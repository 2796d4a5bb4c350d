# SPDX-License-Identifier: Apache-2.0
"""Numbers of single attacks and threats; what all attacks promise is in test_laws."""

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.attacks.alie import hidden_z
from phalanx.core.codec import WEIGHT
from tests.cases import each

ROWS = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
BAD = frozenset({1, 4})
GOOD = [0, 2, 3, 5, 6, 7, 8]


def attacked(attack, rows=ROWS, state=None, index=0, byzantine=BAD, seed=0):
    n = len(rows)
    out, state = attack(px.Stack.of(rows), state, px.Round(index, seed, byzantine, px.LocalCollective(n)))
    return out.rows, state


def test_simple_attacks():
    rows, _ = attacked(px.attacks.reverse(c=100))
    assert rows[1].equal(-100 * ROWS[1]) and rows[4].equal(-100 * ROWS[4])
    rows, _ = attacked(px.attacks.constant())
    assert (rows[sorted(BAD)] == -100).all()
    rows, _ = attacked(px.attacks.nan())
    assert rows[sorted(BAD)].isnan().all()
    rows, _ = attacked(px.attacks.constant(1e30), ROWS.half())
    assert rows[sorted(BAD)].isinf().all() and rows.dtype == torch.float16


def test_alie_is_mean_plus_z_population_deviations_of_all_rows():
    rows, _ = attacked(px.attacks.alie(z=1.5))
    expected = ROWS.mean(dim=0) + 1.5 * ROWS.std(dim=0, correction=0)
    torch.testing.assert_close(rows[sorted(BAD)], expected.expand(2, -1))


def test_alie_z_of_the_published_experiment():
    assert hidden_z(45, 5) == pytest.approx(0.126, abs=5e-4)


@given(st.integers(1, 200), st.integers(1, 200))
def test_alie_z_is_finite_for_every_n_and_f(n, f):
    f = min(n, f)
    z = hidden_z(n, f)
    assert math.isfinite(z)
    outbid = n // 2 + 1 - f
    if outbid >= 1 and n - f - outbid >= 1:
        share = (n - f - outbid) / (n - f)
        assert NormalDist().cdf(z) == pytest.approx(share)
        # with the rows that the attackers outbid, they are a majority
        assert f + outbid > n / 2


def test_alie_needs_nobody_once_it_has_the_majority():
    assert hidden_z(9, 5) == NormalDist().inv_cdf(3 / 4)
    assert hidden_z(9, 9) == hidden_z(9, 8) == hidden_z(2, 1) == 0.0


def test_ipm_turns_the_honest_mean():
    rows, _ = attacked(px.attacks.ipm(epsilon=0.5))
    torch.testing.assert_close(rows[1], -0.5 * ROWS[GOOD].mean(dim=0))
    # beyond (n - f) / f the plain mean points the wrong way
    for epsilon, turned in ((3.4, False), (3.6, True)):
        rows, _ = attacked(px.attacks.ipm(epsilon))
        assert bool(rows.mean(dim=0) @ ROWS[GOOD].mean(dim=0) < 0) == turned


@pytest.mark.parametrize("text", ["alie()", "ipm()", "mimic()", "reverse()", "gaussian()"])
def test_attacks_of_all_workers_at_once_are_finite(text):
    rows, _ = attacked(px.parse(text), byzantine=frozenset(range(9)))
    assert rows.isfinite().all()


def test_gaussian_is_noise_of_its_own_for_each_worker_and_round():
    wide = torch.zeros(3, 20_000)
    rows, _ = attacked(px.attacks.gaussian(), wide, byzantine=frozenset({0, 2}))
    assert float(rows[0].std()) == pytest.approx(200, rel=5 / 40_000**0.5)
    assert abs(float(rows[0].mean())) < 5 * 200 / 20_000**0.5
    alone, _ = attacked(px.attacks.gaussian(), wide, byzantine=frozenset({2}))
    later, _ = attacked(px.attacks.gaussian(), wide, byzantine=frozenset({2}), index=1)
    assert alone[2].equal(rows[2]) and not rows[0].equal(rows[2]) and not later[2].equal(alone[2])


def skewed(t, size=3.0):
    """Rows that differ in all directions a little, and for worker 6 in one direction a lot."""
    rows = torch.randn(9, 7, generator=torch.Generator().manual_seed(t))
    rows[6, 2] += size
    return rows


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_mimic_finds_the_worker_that_differs_most_and_stays_with_it(scale):
    attack, state = px.attacks.mimic(warmup=40), None
    for t in range(40):
        rows, state = attacked(attack, scale * skewed(t), state, t)
    direction = state["direction"]
    assert abs(float(direction[2])) > 0.9 and float(direction.norm()) == pytest.approx(1)
    for t in range(40, 45):
        # another worker stands out now, and the target stays
        current = scale * skewed(t)
        current[3] *= 50
        rows, after = attacked(attack, current, state, t)
        assert rows[1].equal(current[6]) and rows[4].equal(current[6])
        assert after == state or all(after[k] is state[k] for k in state)


def test_mimic_copies_another_honest_worker_when_its_target_is_not_honest():
    attack, state = px.attacks.mimic(warmup=30), None
    for t in range(30):
        _, state = attacked(attack, skewed(t), state, t)
    rows, _ = attacked(attack, skewed(30), state, 30, byzantine=frozenset({6}))
    copied = [i for i in range(9) if i != 6 and rows[6].equal(skewed(30)[i])]
    assert len(copied) == 1
    stack = replace(px.Stack.of(skewed(30)), received=True).pick([0, 1, 2, 3, 4, 5, 7, 8])
    out, _ = attack(stack, state, px.Round(30, 0, BAD, px.LocalCollective(9)))
    assert any(out.rows[1].equal(stack.rows[i]) for i in (0, 2, 3, 5, 6, 7))


def test_mimic_without_warmup_copies_the_first_honest_worker():
    rows, state = attacked(px.attacks.mimic(warmup=0), byzantine=frozenset({0, 4}))
    assert rows[0].equal(ROWS[1]) and rows[4].equal(ROWS[1]) and not state


def test_mimic_learns_nothing_from_rows_that_are_no_numbers():
    attack = px.attacks.mimic()
    _, state = attacked(attack)
    broken = ROWS.clone()
    broken[0, 0] = torch.nan
    _, after = attacked(attack, broken, state, 1)
    assert after is state or all(after[k] is state[k] for k in state)


PAYLOAD = {"values": torch.arange(4.0), "signs": torch.ones(2, dtype=torch.uint8), WEIGHT: torch.ones(1).double()}


@each(
    ("how", "shapes"),
    [("short", [(3,), (1,)]), ("long", [(5,), (3,)]), ("dtype", [(4,), (2,)]), ("random", [(4,), (2,)])],
)
def test_malformed_bodies(how, shapes):
    forged = px.attacks.malformed(how).forge(PAYLOAD, torch.Generator().manual_seed(0))
    assert forged is not None and set(forged) == set(PAYLOAD) and forged[WEIGHT] is PAYLOAD[WEIGHT]
    assert [tuple(forged[k].shape) for k in ("values", "signs")] == shapes
    assert (forged["values"].dtype == torch.float32) == (how != "dtype")
    assert PAYLOAD["values"].equal(torch.arange(4.0))


def test_malformed_claims():
    rng = torch.Generator()
    assert px.attacks.malformed("missing").forge(PAYLOAD, rng) is None
    assert not set(px.attacks.malformed("keys").forge(PAYLOAD, rng) or ()) & set(PAYLOAD)
    claims = [float((px.attacks.malformed(h).forge(PAYLOAD, rng) or {})[WEIGHT]) for h in ("weight", "negative_weight")]
    assert claims == [1e12, -1.0]


def test_threats():
    assert px.adversary.none().at(3, 5, 0) == frozenset()
    assert px.adversary.workers((1, 4)).at(3, 5, 0) == {1, 4}
    assert (
        px.adversary.evenly_spaced(3).at(0, 15, 0) == {0, 5, 10}
        and px.adversary.evenly_spaced(0).at(0, 15, 0) == frozenset()
    )
    assert px.adversary.evenly_spaced(15).at(0, 15, 0) == frozenset(range(15))
    for threat in (
        px.adversary.workers((5,)),
        px.adversary.workers((-1,)),
        px.adversary.evenly_spaced(6),
        px.adversary.random(6),
    ):
        with pytest.raises(ValueError, match="workers"):
            threat.at(0, 5, 0)


@given(st.integers(0, 12), st.integers(0, 4), st.integers(0, 2**40))
def test_drawn_workers(count, every, seed):
    sets = [px.adversary.random(count, every).at(index, 12, seed) for index in range(9)]
    assert all(len(s) == count and s <= set(range(12)) for s in sets)
    for index in range(9):
        assert sets[index] == sets[index // every * every if every else 0]


def test_drawn_workers_change_and_are_all_drawn_in_turn():
    sets = [px.adversary.random(3, every=1).at(index, 12, 0) for index in range(60)]
    assert len(set(sets)) > 30 and frozenset().union(*sets) == set(range(12))

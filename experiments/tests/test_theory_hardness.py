# SPDX-License-Identifier: Apache-2.0
"""Propositions 8.5 and 8.6: formulas as networks, and a pair of neurons that gradients do not tell apart."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import irwinhall, norm
from tests.cases import draws, each

from phalanx_experiments.theory import assignment_of, find_backdoor, hidden_pair, network_of_3sat, satisfies


@st.composite
def formulas(draw):
    n = draw(st.integers(1, 7))
    literal = st.integers(1, n).flatmap(lambda k: st.sampled_from([k, -k]))
    return draw(st.lists(st.tuples(literal, literal, literal), min_size=1, max_size=40)), n


def true(clauses, values):
    return all(any((literal > 0) == values[abs(literal) - 1] for literal in clause) for clause in clauses)


@given(formulas())
@draws(30)
def test_a_formula_has_a_solution_if_and_only_if_its_network_has_a_backdoor(formula):
    clauses, n = formula
    f = network_of_3sat(clauses, n)
    solutions = [values for values in product([False, True], repeat=n) if true(clauses, values)]
    corners = torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    counted = [assignment_of(corner) for corner, value in zip(corners, f(corners)[:, 0], strict=True) if value > 0]
    assert counted == solutions
    assert set(f(corners).flatten().tolist()) <= {0.0, 1.0}
    found = find_backdoor(f, n)
    assert (found is None) == (not solutions)
    assert found is None or satisfies(clauses, assignment_of(found))


@given(formulas(), st.integers(0, 1000))
@draws(20)
def test_every_point_where_it_is_not_zero_gives_a_solution(formula, seed):
    clauses, n = formula
    f = network_of_3sat(clauses, n)
    x = torch.rand(100, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, rounded = f(x), f((x >= 0.5).double())
    assert (rounded >= values - 1e-12).all()
    for point in x[values[:, 0] > 1e-9]:
        assert true(clauses, assignment_of(point))


def test_a_formula_without_a_solution_is_zero_everywhere():
    clauses = [
        tuple(sign * k for sign, k in zip(signs, (1, 2, 3), strict=True)) for signs in product([1, -1], repeat=3)
    ]
    f = network_of_3sat(clauses, 3)
    steps = torch.linspace(0, 1, 21, dtype=torch.float64)
    assert f(torch.cartesian_prod(steps, steps, steps)).max() == 0
    assert find_backdoor(f, 3) is None
    assert find_backdoor(network_of_3sat(clauses[:-1], 3), 3).tolist() == [1, 1, 1]


def test_the_network_is_small_and_of_whole_numbers():
    clauses = [(1, -2, 3), (2, 2, -5), (4, -4, 1)]
    f, state = network_of_3sat(clauses, 5), torch.random.get_rng_state()
    assert [tuple(p.shape) for p in f.parameters()] == [(10, 5), (10,), (6, 10), (6,), (1, 6), (1,)]
    assert all(bool((p == p.round()).all()) and p.abs().max() <= 3 for p in f.parameters())
    assert torch.equal(state, torch.random.get_rng_state())


@each("clauses", [[], [(1, 2)], [(1, 2, 0)], [(1, 2, 4)], [(1, 2, -4)], [(1, 2, 1.5)], [(True, 1, 2)]])
def test_what_is_no_formula(clauses):
    with pytest.raises(ValueError, match="clause"):
        network_of_3sat(clauses, 3)


def test_other_numbers_that_are_refused():
    with pytest.raises(ValueError, match="num_variables=0"):
        network_of_3sat([(1, 1, 1)], 0)
    with pytest.raises(ValueError, match="n=25"):
        find_backdoor(network_of_3sat([(1, 1, 1)], 25), 25)
    with pytest.raises(ValueError, match=r"got \(2, 3\)"):
        assignment_of(torch.zeros(2, 3))


@given(st.integers(1, 60), st.floats(0.001, 0.499), st.integers(0, 1000))
@draws(20)
def test_the_pair_is_equal_outside_of_b(n, t, seed):
    pair, rng = hidden_pair(n, t), torch.Generator().manual_seed(seed)
    # means of all sizes, which uniform points do not have
    x = torch.rand(300, n, generator=rng, dtype=torch.float64) * torch.rand(300, 1, generator=rng, dtype=torch.float64)
    x = torch.where(torch.rand(300, 1, generator=rng) < 0.5, 1 - x, x)
    at = [x.clone().requires_grad_() for _ in range(2)]
    values = [net(points)[:, 0] for net, points in zip((pair.f, pair.g), at, strict=True)]
    slopes = [torch.autograd.grad(v.sum(), points)[0] for v, points in zip(values, at, strict=True)]
    outside = ~pair.holds(x)
    # where the mean is b_2 to the last bit, either side may be meant
    outside &= (x.mean(1) - 0.5 - t).abs() > 1e-12
    assert values[0].max() <= 1e-12
    assert torch.equal(values[0][outside], values[1][outside])
    assert torch.equal(slopes[0][outside], slopes[1][outside])
    one = torch.ones(1, n, dtype=torch.float64)
    assert pair.holds(one).all()
    assert (pair.g(one) - pair.f(one)).item() == pytest.approx(0.5 - t, abs=1e-12)
    assert pair.difference == 0.5 - t


@given(st.integers(1, 60), st.floats(0.001, 0.499))
def test_the_share_of_b_is_below_hoeffding(n, t):
    pair = hidden_pair(n, t)
    assert 0 < pair.probability() <= pair.bound < 1


@each(("n", "t"), [(1, 0.25), (2, 0.25), (3, 0.1), (8, 0.2), (15, 0.05)])
def test_the_share_of_b_is_that_of_irwin_and_hall(n, t):
    assert hidden_pair(n, t).probability() == pytest.approx(irwinhall(n).cdf(n * (0.5 - t)), rel=1e-9)


def test_the_share_of_b_by_hand_and_of_many_inputs():
    assert hidden_pair(1, 0.25).probability() == 0.25
    assert hidden_pair(2, 0.25).probability() == 0.125
    # the central limit, at two standard deviations
    n = 400
    t = 2 / math.sqrt(12 * n)
    assert hidden_pair(n, t).probability() == pytest.approx(norm.sf(2), rel=0.01)


@pytest.mark.parametrize(("n", "t"), [(1, 0.25), (10, 0.1), (50, 0.05)])
def test_drawn_points_lie_in_b_as_often_as_they_should(n, t):
    samples = 20_000
    share = hidden_pair(n, t).share(samples, torch.Generator().manual_seed(0))
    assert share.measured == share.inside / samples
    assert share.bound == math.exp(-2 * n * t * t)
    exact = hidden_pair(n, t).probability()
    assert abs(share.measured - exact) < 4 * math.sqrt(exact * (1 - exact) / samples)
    assert share.measured <= share.bound


def test_at_the_printed_threshold_half_of_the_cube_lies_in_b():
    assert hidden_pair(20, 1e-12).probability() == pytest.approx(0.5, abs=1e-9)
    assert math.exp(-20 / 2) < 1e-4


@each(("n", "t"), [(0, 0.1), (5, 0.0), (5, 0.5), (5, -0.1), (5, math.nan)])
def test_pairs_that_are_refused(n, t):
    with pytest.raises(ValueError, match=r"hidden_pair needs"):
        hidden_pair(n, t)


def test_other_shares_that_are_refused():
    with pytest.raises(ValueError, match="n=1001; `bound`"):
        hidden_pair(1001, 0.1).probability()
    with pytest.raises(ValueError, match="samples=0"):
        hidden_pair(3, 0.1).share(0, torch.Generator())

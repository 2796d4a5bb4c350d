# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import phalanx as px
from tests.cases import each

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def act(stage, row, state=None, index=0, worker=0, layout=None, seed=0):
    stack = px.Stack.of(row.reshape(1, -1), layout, ids=(worker,))
    out, state = stage(stack, state, px.Round(index, seed))
    return out.rows[0], state


@given(st.floats(0, 0.999), st.integers(1, 6), st.sampled_from(DTYPES))
def test_momentum_is_the_weighted_sum_of_all_rows(beta, rounds, dtype):
    given_rows = [torch.randn(7, generator=torch.Generator().manual_seed(t)).to(dtype) for t in range(rounds)]
    state = None
    for t, row in enumerate(given_rows):
        out, state = act(px.momentum(beta), row, state, t)
        weights = [(1 - beta) * beta ** (t - i) if i else beta**t for i in range(t + 1)]
        expected = sum(w * r.double() for w, r in zip(weights, given_rows, strict=False))
        assert out.dtype == dtype
        tolerance = 4 * max(torch.finfo(dtype).eps, 1e-7)
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=3 * tolerance)


def test_momentum_begins_with_the_row_itself():
    row = torch.randn(1000)
    assert act(px.momentum(0.9), row)[0].equal(row)


def test_momentum_outlives_a_round_that_is_no_number():
    state = None
    for t, value in enumerate((1.0, float("nan"), float("inf"), 1.0)):
        out, state = act(px.momentum(0.5), torch.tensor([value, 1.0]), state, t)
        assert bool(out.isfinite().all()) == (value == 1.0)
        assert state["worker:0"]["momentum"]["row"].tolist() == [1.0, 1.0]
    _, begun_badly = act(px.momentum(0.5), torch.tensor([float("nan"), 1.0]))
    assert begun_badly["worker:0"]["momentum"]["row"].tolist() == [0.0, 1.0]


def test_momentum_serves_every_cut_of_the_model():
    shapes = {"a": torch.Size([2]), "b": torch.Size([3]), "c": torch.Size([1, 2])}
    whole = px.Layout(tuple(shapes), tuple(shapes.values()))
    together = apart = None
    for t, cut in enumerate([("ab", "c"), ("c", "ba"), ("b", "a", "c")]):
        row = torch.randn(7, generator=torch.Generator().manual_seed(t))
        expected, together = act(px.momentum(), row, together, t, layout=whole)
        for names in cut:
            small = px.Layout(tuple(names), tuple(shapes[n] for n in names))
            out, apart = act(px.momentum(), small.join(whole.split(row)), apart, t, layout=small)
            assert out.equal(small.join(whole.split(expected)))


def test_momentum_in_float16_does_not_lose_small_steps():
    """(1 - beta) g below half a unit in the last place of m would vanish if the memory were float16 too."""
    state, row = None, torch.tensor([1.0], dtype=torch.float16)
    _, state = act(px.momentum(0.999), row, state)
    for t in range(300):
        out, state = act(px.momentum(0.999), torch.tensor([0.9], dtype=torch.float16), state, t + 1)
    assert float(out) == pytest.approx(0.9 + 0.1 * 0.999**300, abs=1e-3)


@each("text", ["momentum(beta=1.0)", "momentum(beta=-0.1)", "noise(std=-1.0)", "noise(std=inf)"])
def test_impossible_numbers_are_refused(text):
    with pytest.raises(ValueError, match="needs"):
        px.parse(text)


@pytest.mark.parametrize("text", ["clip(norm=0.0)", "clip(norm=inf)", "clip(norm=nan)"])
def test_impossible_norms_are_refused(text):
    with pytest.raises(ValueError, match="norm > 0"):
        px.parse(text)


@given(st.sampled_from(DTYPES), st.sampled_from([1e-3, 1.0, 500.0]), st.sampled_from([0.0, 1e-6, 1.0, 1e4, 1e30]))
def test_clip_bounds_the_norm_and_keeps_the_direction(dtype, norm, size):
    row = (torch.randn(9, generator=torch.Generator().manual_seed(1)) * size).to(dtype)
    out, _ = act(px.clip(norm), row)
    assume(bool(row.isfinite().all()))
    length, clipped = row.double().norm(), out.double().norm()
    assert clipped <= norm * (1 + 4 * torch.finfo(dtype).eps) + 1e-7
    if length <= norm:
        assert out.equal(row)
    else:
        torch.testing.assert_close(out.double() / clipped, row.double() / length, rtol=0.1, atol=0.01)


def test_clip_does_not_make_a_bad_row_look_good():
    for value in (float("nan"), float("inf")):
        assert not act(px.clip(1.0), torch.tensor([value, 1.0]))[0].isfinite().all()


def test_noise_has_its_standard_deviation_and_no_mean():
    d = 40_000
    out, _ = act(px.noise(0.5), torch.full((d,), 3.0))
    assert float(out.mean()) == pytest.approx(3.0, abs=5 * 0.5 / d**0.5)
    assert float(out.std()) == pytest.approx(0.5, rel=5 / (2 * d) ** 0.5)


def test_noise_is_its_own_for_each_worker_round_seed_and_place():
    row = torch.zeros(8)
    drawn = [
        act(px.noise(1.0), row)[0],
        act(px.noise(1.0), row, worker=1)[0],
        act(px.noise(1.0), row, index=1)[0],
        act(px.noise(1.0), row, seed=1)[0],
        act(px.chain(px.noise(1.0)), row)[0],
        act(px.chain(px.noise(1.0), px.noise(1.0)), row)[0],
    ]
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert act(px.noise(1.0), row)[0].equal(drawn[0]) and torch.get_rng_state().equal(before)


def test_noise_is_the_same_in_every_cut_of_the_model():
    shapes = {"a": torch.Size([3, 4]), "b": torch.Size([5]), "c": torch.Size([2])}

    def noise(*names):
        layout = px.Layout(names, tuple(shapes[n] for n in names))
        stack = px.Stack.of(torch.zeros(1, layout.d), layout)
        return layout.split(px.noise(1.0)(stack, None, px.Round(3, 1))[0].rows[0])

    whole = noise("a", "b", "c")
    pieces = {**noise("c", "a"), **noise("b")}
    assert all(whole[n].equal(pieces[n]) for n in shapes)
    assert not whole["a"].flatten()[:5].equal(whole["b"])


def test_noise_of_nothing_is_nothing():
    row = torch.randn(5)
    assert act(px.noise(0.0), row)[0].equal(row)
    assert act(px.noise(1.0), torch.zeros(0))[0].shape == (0,)

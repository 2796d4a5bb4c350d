# SPDX-License-Identifier: Apache-2.0
"""The decoder of the cyclic code: its pass over the rows, secret and search, and lies of those who know it by heart."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import phalanx as px
from phalanx.aggregators.kernels.columns import PIECE
from phalanx.coding.circulant import circulant
from phalanx.coding.code import TooManyFaults
from phalanx.coding.projection import sweep
from phalanx.core.precision import accumulation_dtype
from tests.cases import each
from tests.examples import round_of

# the modules, whose names their public functions have
cyclic = import_module("phalanx.coding.cyclic")


def stack_of(rows, missing=()):
    here = [i for i in range(len(rows)) if i not in missing]
    return replace(px.Stack.of(rows).pick(here), received=True, erased=len(missing))


def decoded(code, rows, missing=()):
    out, _ = code(stack_of(rows, missing), None, round_of(len(rows)))
    return out.rows[0].double(), {note.worker for note in out.notes if note.kind == "outvoted"}


def example(n, s, d=200, dtype=torch.float32, **kwargs):
    code = px.coding.cyclic(s=s, **kwargs)
    units = torch.randn(n, d, generator=torch.Generator().manual_seed(n), dtype=torch.float64).to(dtype)
    return code, code.encode(units, n), units.double().mean(dim=0)


def project(rows, key):
    return sweep(rows, key, np.zeros(len(rows)))[0]


def factors_of(d, key):
    """Column by column: what the projections of the unit rows are."""
    return project(torch.eye(d), key)


# projections


def test_factors_are_centred_independent_and_never_zero():
    # 2 000 columns: means within five standard errors
    f = factors_of(2000, key=5)
    assert np.abs(f).min() >= 2.0**-16 and np.abs(f).max() < 1
    assert np.abs(f.mean(axis=0)).max() < 5 / np.sqrt(3 * 2000)
    assert np.abs(np.corrcoef(f.T) - np.eye(4)).max() < 5 / np.sqrt(2000)
    assert np.abs(np.corrcoef(f[:-1].T, f[1:].T)[:4, 4:]).max() < 5 / np.sqrt(2000)
    assert (f != factors_of(2000, key=6)).mean() > 0.99


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each(("n", "d"), [(1, 1), (2, 7), (3, 4096), (5, 4097), (7, 70_001)])
def test_projections_are_inner_products(n, d, dtype):
    rows = torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(d)).to(dtype)
    ones = project(torch.ones(1, d), 9)
    flat = rows[:, ::2]
    whole = project(flat, 9)
    # another layout of the same numbers, other threads: the same sums
    torch.set_num_threads(2)
    try:
        again = project(flat.contiguous(), 9)
    finally:
        torch.set_num_threads(1)
    assert np.array_equal(whole, again)
    np.testing.assert_allclose(project(torch.full((1, d), 3.0), 9), 3 * ones, rtol=1e-12)
    if d <= 4097:
        np.testing.assert_allclose(whole, flat.double().numpy() @ factors_of(d, 9), rtol=1e-9, atol=1e-9)


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@each(("n", "d"), [(1, 1), (2, 7), (4, 0), (5, 4096), (6, 4097), (14, 70_001)])
def test_the_same_pass_combines_the_rows(n, d, dtype):
    rows = torch.randn(n, 2 * d, generator=torch.Generator().manual_seed(d)).to(dtype)[:, ::2]
    shares = np.random.default_rng(n).normal(size=n)
    projections, mixed = sweep(rows, 9, shares)
    assert np.array_equal(projections, project(rows, 9)) and mixed.dtype == dtype
    # one rounding, of a sum in float64
    expected = (torch.from_numpy(shares) @ rows.double()).to(accumulation_dtype(dtype)).to(dtype)
    torch.testing.assert_close(mixed, expected, rtol=torch.finfo(dtype).eps, atol=1e-14)
    # factors of one part of each piece, and nothing of the others
    some, _ = sweep(rows, 9, shares, sample=16)
    seen = torch.zeros_like(rows)
    for start in range(0, d, PIECE):
        part = slice(start, start - (start - min(start + PIECE, d)) // 16)
        seen[:, part] = rows[:, part]
    np.testing.assert_allclose(some, project(seen, 9), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("missing", [(), (7,)])
def test_a_wrong_first_guess_costs_a_second_pass_and_no_bit(missing, monkeypatch):
    code, rows, truth = example(15, 3, d=2 * PIECE + 5)
    passes = []
    monkeypatch.setattr(cyclic, "sweep", lambda *given: passes.append(given[3:]) or sweep(*given))

    def run(lie):
        passes.clear()
        sent = rows.clone()
        sent[4, lie] *= -100
        row, named = decoded(code, sent, missing)
        assert named == {4} and float((row - truth).norm() / truth.norm()) < 1e-6
        return row, passes.count(())

    seen, once = run(slice(None))
    hidden, twice = run(slice(PIECE - 9, PIECE))
    assert (once, twice) == (1, 2) and hidden.equal(seen)


# the secret


def test_processes_that_decode_share_one_key(monkeypatch):
    keys = []
    monkeypatch.setattr(cyclic, "sweep", lambda rows, key, *rest: keys.append(key) or sweep(rows, key, *rest))
    monkeypatch.setattr(cyclic.secrets, "randbits", lambda bits: 11)

    class Other(px.LocalCollective):
        def broadcast(self, tree):
            return {"key": 22} if set(tree) == {"key"} else tree

    code, rows, _ = example(7, 1)
    for world in (px.LocalCollective(7), Other(7)):
        code(stack_of(rows), None, round_of(7, world=world))
    assert list(dict.fromkeys(keys)) == [11, 22]


def test_keys_differ_from_round_to_round_and_the_result_does_not(monkeypatch):
    keys = []
    monkeypatch.setattr(cyclic, "sweep", lambda rows, key, *rest: keys.append(key) or sweep(rows, key, *rest))
    code, rows, _ = example(15, 3)
    rows[[4, 5, 9]] *= -100
    results = [decoded(code, rows) for _ in range(5)]
    assert len(set(keys)) == 5
    assert all(named == {4, 5, 9} and row.equal(results[0][0]) for row, named in results)


# the search


@each(("n", "s"), [(9, 2), (15, 3), (16, 3), (45, 5)])
def test_a_huge_lie_does_not_hide_a_small_one(n, s):
    code, rows, truth = example(n, s)
    noise = torch.randn(rows[0].shape, generator=torch.Generator().manual_seed(0))
    for size in (1e6, 1e12, 1e15):
        sent = rows.clone()
        sent[0] = size * noise
        sent[n // 2] += 1e-3 * noise
        row, named = decoded(code, sent)
        assert named == {0, n // 2}
        assert float((row - truth).norm() / truth.norm()) < 1e-5


@each(("n", "s"), [(9, 1), (15, 3), (45, 2), (45, 5)])
def test_an_honest_unit_that_is_much_larger_accuses_nobody(n, s):
    code = px.coding.cyclic(s=s)
    units = torch.randn(n, 100, generator=torch.Generator().manual_seed(1))
    units[3] *= 1e5
    row, named = decoded(code, code.encode(units, n))
    assert not named
    torch.testing.assert_close(row, units.double().mean(dim=0), rtol=1e-4, atol=1e-2)


@each(("n", "s"), [(7, 1), (15, 2), (15, 3), (45, 2), (45, 5)])
def test_units_that_nearly_cancel_accuse_nobody(n, s):
    code = px.coding.cyclic(s=s)
    for seed in range(5):
        units = torch.randn(n, 300, generator=torch.Generator().manual_seed(seed))
        units -= 0.99 * units.mean(dim=0)
        row, named = decoded(code, code.encode(units, n))
        assert not named and float((row - units.double().mean(dim=0)).abs().max()) < 1e-6


def near_codeword(n, s):
    """A vector of the code space, of largest entry 1 at all workers but the first 2s: the hardest to tell from none."""
    code = circulant(n, s)
    outside = code.band[2 * s :]
    word = code.band @ np.linalg.solve(outside.T @ outside, np.eye(outside.shape[1])[0])
    return word / np.abs(word[2 * s :]).max()


@each("dtype", [torch.float32, torch.float64])
@each(("n", "s"), [(7, 2), (15, 3), (21, 4), (45, 3), (45, 5)])
def test_crafted_lies_do_no_more_than_the_ambiguity_says(n, s, dtype):
    code, rows, truth = example(n, s, dtype=dtype)
    # projections in float64 show no finer faults
    eps = max(torch.finfo(dtype).eps, 2.0**-44)
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction *= float(rows.double().norm(dim=1).max()) / direction.norm()
    word = torch.from_numpy(near_codeword(n, s))
    for half in (range(0, 2 * s, 2), range(s), range(s, 2 * s)):
        for size in (0.1, 1.0, 10.0, 100.0):
            sent = rows.double().clone()
            sent[list(half)] += size * eps * word[list(half)].unsqueeze(1) * direction
            row, named = decoded(code, sent.to(dtype))
            error = float((row - truth).norm() / direction.norm())
            assert error <= 10 * code.ambiguity(n) * eps, (half, size, error)
            assert len(named) <= s
            # what can be told is told
            if size == 100.0:
                assert named == set(half)


@pytest.mark.parametrize("s", [3, 5])
def test_more_false_neighbours_than_s_raise(s):
    n = 45
    code, rows, _ = example(n, s)
    for count in (s + 1, 2 * s):
        sent = rows.clone()
        sent[:count] += torch.randn(sent[:count].shape, generator=torch.Generator().manual_seed(count))
        with pytest.raises(TooManyFaults, match=f"more than {s} of n={n}"):
            decoded(code, sent)


def test_rows_that_give_the_mean_to_few_digits_only_are_refused():
    code, rows, truth = example(45, 5)
    with pytest.raises(TooManyFaults, match="35 rows left of n=45"):
        decoded(code, rows, range(10))
    # the same number, spread out, costs nothing
    row, _ = decoded(code, rows, range(0, 40, 4))
    assert float((row - truth).norm() / truth.norm()) < 1e-6
    with pytest.raises(TooManyFaults, match="11 of n=45 rows are missing"):
        decoded(code, rows, range(11))


# repetition


def test_a_missing_row_does_not_move_the_weights_of_others():
    """The gate bounds weights by their median, and units differ by an example."""
    rows = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)).repeat_interleave(3, dim=0)
    weights = torch.tensor([8, 8, 7, 7, 7, 8, 8], dtype=torch.float64).repeat_interleave(3)
    code, stack = px.coding.repetition(r=3), replace(stack_of(rows), weights=weights)
    free, _ = code(stack, None, round_of(21))
    sent = rows.clone()
    sent[[0, 3, 15]] = float("nan")
    out, _ = code(replace(stack, rows=sent), None, round_of(21))
    assert out.rows.equal(free.rows)

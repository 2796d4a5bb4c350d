# SPDX-License-Identifier: Apache-2.0
"""The passes over rows against definitions written out by hand."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from phalanx.aggregators.kernels import columns, order
from phalanx.aggregators.kernels.columns import mix, mix_one
from phalanx.aggregators.kernels.gram import distances, inner_products
from phalanx.aggregators.kernels.order import BOTH, HIGH, LOW, network, schedule
from tests.cases import draws, each

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = ("normal", "ties", "zeros", "offset", "huge", "tiny", "clusters", "copies")
FORMS = ("plain", "transposed", "every third column", "every other row", "one row expanded")


def make_rows(n: int, d: int, kind: str, dtype: torch.dtype, form: str, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if kind == "ties":
        x = rng.integers(-2, 3, (n, d)).astype(float)
    elif kind == "zeros":
        x *= rng.random((n, d)) < 0.1
    elif kind == "offset":
        x += 1000.0
    elif kind == "huge":
        x[: n // 3] *= 1e4 if dtype == torch.float16 else 1e17
    elif kind == "tiny":
        x *= 1e-6 if dtype == torch.float16 else 1e-30
    elif kind == "clusters":
        x = x * 0.01 + np.repeat([[0.0], [5.0], [400.0]], -(-n // 3), axis=0)[:n]
    elif kind == "copies":
        x = x[np.arange(n) // 3]
    if form == "transposed":
        return torch.from_numpy(np.ascontiguousarray(x.T)).to(dtype).T
    if form == "every third column":
        wide = torch.full((n, 3 * d), float("nan"), dtype=dtype)
        wide[:, ::3] = torch.from_numpy(x).to(dtype)
        return wide[:, ::3]
    if form == "every other row":
        tall = torch.full((2 * n, d), float("nan"), dtype=dtype)
        tall[::2] = torch.from_numpy(x).to(dtype)
        return tall[::2]
    if form == "one row expanded":
        return torch.from_numpy(x[:1]).to(dtype).expand(n, d)
    return torch.from_numpy(x).to(dtype)


@st.composite
def tables(draw, most_rows: int = 20):
    n, d = draw(st.integers(1, most_rows)), draw(st.sampled_from([0, 1, 2, 5, 127, 128, 129, 300]))
    pick = st.sampled_from
    return make_rows(n, d, draw(pick(KINDS)), draw(pick(DTYPES)), draw(pick(FORMS)), draw(st.integers(0, 2**31)))


def working(rows: torch.Tensor) -> np.ndarray:
    return rows.to(torch.float64 if rows.dtype == torch.float64 else torch.float32).numpy()


def exact(rows: torch.Tensor) -> np.ndarray:
    return rows.to(torch.float64).numpy()


def close(result: torch.Tensor, expected: np.ndarray, rows: torch.Tensor) -> None:
    """Within rounding of the dtype, measured against the largest entry that could have been summed."""
    assert result.dtype == rows.dtype
    scale = np.abs(exact(rows)).max(axis=0, initial=0)
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    step = torch.finfo(rows.dtype).eps + 16 * torch.finfo(wide).eps
    smallest = torch.finfo(rows.dtype).smallest_normal
    assert (np.abs(exact(result) - expected) <= 4 * step * scale + smallest).all()


@given(st.integers(1, 40), st.data())
def test_pruned_network_finds_order_statistics(n, data):
    lo = data.draw(st.integers(0, n - 1))
    hi = data.draw(st.integers(lo + 1, n))
    summed = data.draw(st.booleans())
    x = np.random.default_rng(n).integers(0, n, (n, 50))
    y = x.copy()
    for i, j, outputs in network(n, lo, hi, summed):
        a, b = y[i].copy(), y[j].copy()
        assert i < j
        # an output that is not read may hold anything
        y[i] = np.minimum(a, b) if outputs in (BOTH, LOW) else -9
        y[j] = np.maximum(a, b) if outputs in (BOTH, HIGH) else -9
    found = np.sort(y[lo:hi], axis=0) if summed else y[lo:hi]
    assert (found == np.sort(x, axis=0)[lo:hi]).all()


@given(st.integers(1, 40), st.data())
def test_steps_never_write_to_a_slot_that_they_read(n, data):
    lo = data.draw(st.integers(0, n - 1))
    hi = data.draw(st.integers(lo + 1, n))
    x = np.random.default_rng(n).integers(0, n, (n, 50))
    block = np.concatenate([x, np.full((2, 50), -9)])
    steps, slots = schedule(n, lo, hi, False)
    for i, j, low, high, outputs in steps:
        assert len({i, j, low, high}) == 4
        a, b = block[i].copy(), block[j].copy()
        block[low] = np.minimum(a, b) if outputs in (BOTH, LOW) else -9
        block[high] = np.maximum(a, b) if outputs in (BOTH, HIGH) else -9
    assert (block[slots[lo:hi]] == np.sort(x, axis=0)[lo:hi]).all()


def test_network_sorts_all_zero_one_inputs():
    for n in range(1, 11):
        x = (np.arange(2**n)[None, :] >> np.arange(n)[:, None]) & 1
        for i, j, _ in network(n, 0, n, False):
            x[i], x[j] = x[i] & x[j], x[i] | x[j]
        assert (np.diff(x, axis=0) >= 0).all()


def test_pruning_saves_comparators():
    assert len(network(45, 22, 23, True)) < len(network(45, 0, 45, False))
    assert len(network(45, 0, 45, True)) == 0


@given(tables())
def test_median_is_exact(rows):
    s = np.sort(working(rows), axis=0)
    n = len(rows)
    expected = torch.from_numpy((s[(n - 1) // 2] + s[n // 2]) / 2).to(rows.dtype)
    result = order.median(rows)
    assert result.dtype == rows.dtype and torch.equal(result, expected)


@given(tables(), st.data())
def test_single_order_statistics_are_exact(rows, data):
    k = data.draw(st.integers(0, len(rows) - 1))
    assert torch.equal(
        order.middle_mean(rows, k, k + 1), torch.from_numpy(np.sort(exact(rows), axis=0)[k]).to(rows.dtype)
    )


@given(tables(), st.data())
def test_middle_mean_is_the_mean_of_the_sorted_middle(rows, data):
    picks = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    lo = data.draw(st.integers(0, len(picks) - 1))
    hi = data.draw(st.integers(lo + 1, len(picks)))
    expected = np.sort(exact(rows)[picks], axis=0)[lo:hi].mean(axis=0)
    close(order.middle_mean(rows, lo, hi, picks), expected, rows)
    # the way of other devices
    close(order._sorted(rows, np.array(picks), lambda values: values[lo:hi].mean(dim=0)), expected, rows)


def nearest_to_median(x: np.ndarray, keep: int) -> np.ndarray:
    """One column at a time, in the precision of x: sort by (distance to the median, value), keep the first."""
    out = np.empty(x.shape[1])
    for c, column in enumerate(x.T):
        s = np.sort(column)
        middle = (s[(len(s) - 1) // 2] + s[len(s) // 2]) * s.dtype.type(0.5)
        ranked = sorted(s, key=lambda v: (abs(v - middle), v))
        out[c] = np.mean(np.array(ranked[:keep], dtype=np.float64))
    return out


@draws(60)
@given(tables(), st.data())
def test_central_mean_takes_the_values_closest_to_the_median(rows, data):
    keep = data.draw(st.integers(1, len(rows)))
    expected = nearest_to_median(working(rows), keep)
    close(order.central_mean(rows, keep), expected, rows)
    everyone = np.arange(len(rows))
    close(order._sorted(rows, everyone, lambda values: order._central(values, keep)), expected, rows)


@given(tables(), st.integers(0, 10))
def test_mix_is_the_matrix_product(rows, seed):
    weights = torch.rand(3, len(rows), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / len(rows)
    expected = weights.numpy() @ exact(rows)
    close(mix(weights, rows).flatten(), expected.flatten(), rows.repeat(1, 3))
    close(mix_one(weights[0], rows), expected[0], rows)
    assert mix(weights[:1], rows).shape == (1, rows.shape[1])


def all_pairs(rows: torch.Tensor) -> np.ndarray:
    x = exact(rows)
    return ((x[:, None] - x[None, :]) ** 2).sum(axis=2)


@given(tables(), st.booleans())
def test_distances_of_hostile_rows(rows, wide):
    expected = all_pairs(rows)
    np.testing.assert_allclose(distances(rows).squared, expected, rtol=1e-3, atol=0)
    centre = len(rows) // 2
    x = exact(rows) - exact(rows)[centre]
    scale = np.sqrt(np.outer(expected[centre], expected[centre]))
    error = np.abs(inner_products(rows, rows[centre], in_float64=wide) - x @ x.T)
    assert (error <= 1e-4 * scale + 1e-30).all()


@each("d", [1, 2047, 2048, 2049, 140_000])
def test_distances_on_long_rows(d):
    rows = make_rows(9, d, "normal", torch.float32, "plain", d) + 1e4
    np.testing.assert_allclose(distances(rows).squared, all_pairs(rows), rtol=1e-5)


def test_distances_at_every_scale_at_once():
    """Each row a thousand times as far away as the one before: no single centre serves all pairs."""
    rows = torch.tensor([[10.0**k] * 4 for k in range(-18, 19, 3)] * 2)
    rows[13:] *= -1
    np.testing.assert_allclose(distances(rows).squared, all_pairs(rows), rtol=1e-3)


def test_one_bomb_in_one_coordinate_hides_no_distance():
    rows = make_rows(15, 5000, "normal", torch.float32, "plain", 1)
    rows[::3, 4321] = 1e18
    np.testing.assert_allclose(distances(rows).squared, all_pairs(rows), rtol=1e-3)


def test_copies_are_at_distance_zero():
    rows = make_rows(12, 3000, "copies", torch.float32, "plain", 3)
    squared = distances(rows).squared
    assert ((squared == 0) == (np.arange(12)[:, None] // 3 == np.arange(12)[None, :] // 3)).all()


def test_results_do_not_depend_on_the_number_of_threads():
    rows = make_rows(11, 3 * columns.PIECE + 17, "normal", torch.float32, "plain", 0)
    threads = torch.get_num_threads()
    outs = []
    for k in (1, 2, 3):
        torch.set_num_threads(k)
        try:
            outs.append((order.median(rows), order.middle_mean(rows, 2, 9), distances(rows[:, :70_000]).squared))
        finally:
            torch.set_num_threads(threads)
    for other in outs[1:]:
        assert torch.equal(outs[0][0], other[0]) and torch.equal(outs[0][1], other[1])
        assert (outs[0][2] == other[2]).all()


def test_numba_is_imported_by_the_first_sweep_only():
    code = "import sys, phalanx; assert 'numba' not in sys.modules and 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

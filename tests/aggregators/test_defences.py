# SPDX-License-Identifier: Apache-2.0
"""FoolsGold, FLAME and FLTrust against their definitions, and what they do to attackers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.stack import Stack
from tests.cases import draws


def rows_of(n, d=7, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@given(st.integers(2, 7), st.integers(0, 50))
def test_foolsgold_is_algorithm_1(n, seed):
    rounds = [rows_of(n, seed=seed), rows_of(n, seed=seed + 100)]
    past = rounds[0] + rounds[1]
    c = [[cosine(past[i], past[j]) if i != j else -1.0 for j in range(n)] for i in range(n)]
    v = [max(row) for row in c]
    for i in range(n):
        for j in range(n):
            if i != j and v[j] > v[i]:
                c[i][j] *= v[i] / v[j] if v[j] > 0 else 1.0
    a = [min(1.0, max(0.0, 1 - max(row))) for row in c]
    a = [min(0.99, x / max(a)) for x in a]
    w = [min(1.0, max(0.0, math.log(max(x, 1e-12) / (1 - x)) + 0.5)) for x in a]
    expected = sum(x * row for x, row in zip(w, rounds[1], strict=True)) / sum(w)
    rule, state = px.aggregators.foolsgold(), None
    for rows in rounds:
        out, state = rule(Stack.of(rows), state, px.Round())
    torch.testing.assert_close(out.rows[0], expected, rtol=1e-4, atol=1e-5)


def test_foolsgold_shuts_out_attackers_who_are_alike():
    honest, aim = rows_of(8, 200), rows_of(1, 200, seed=9)[0]
    bad = aim + 0.05 * rows_of(3, 200, seed=5)
    rows = torch.cat([honest, bad])
    out = px.aggregators.foolsgold().aggregate(rows)
    assert abs(cosine(out, aim)) < 0.1 < cosine(rows.mean(0), aim)


def test_foolsgold_without_a_weight_loses_the_round():
    with pytest.raises(px.TooFewRows, match="all clients look alike"):
        px.aggregators.foolsgold().aggregate(torch.ones(4, 3))


def directions(n, d=60, spread=0.3, seed=0):
    centre = rows_of(1, d, seed=77)[0]
    return centre + spread * rows_of(n, d, seed=seed)


def test_flame_keeps_the_cluster_of_most_and_cuts_to_the_median_norm():
    honest = directions(7)
    honest = honest * torch.linspace(0.5, 2, 7, dtype=torch.float64)[:, None]
    other = -directions(3, seed=3)
    rows = torch.cat([honest, other])
    middle = float(np.median(rows.norm(dim=1)))
    cut = honest * (middle / honest.norm(dim=1)).clamp(max=1)[:, None]
    outcome = px.aggregators.flame(noise=0.0, reach=1.25).outcome(rows)
    torch.testing.assert_close(outcome.rows[0], cut.mean(0))
    assert sorted(note.worker for note in outcome.notes if note.kind == "chosen") == list(range(7))


@given(st.integers(5, 20), st.integers(0, 1000))
@draws(40)
def test_flame_keeps_what_the_published_clustering_keeps(n, seed):
    from sklearn.cluster import HDBSCAN

    rows = torch.cat([directions(n - n // 4, spread=1.5, seed=seed), -2 * directions(n // 4, seed=seed)])
    apart = np.array([[max(0.0, 1 - cosine(a, b)) for b in rows] for a in rows])
    np.fill_diagonal(apart, 0)
    published = HDBSCAN(
        min_cluster_size=n // 2 + 1, min_samples=1, allow_single_cluster=True, metric="precomputed", copy=True
    )
    labels = published.fit(apart).labels_
    kept = [note.worker for note in px.aggregators.flame(noise=0.0).outcome(rows).notes if note.kind == "chosen"]
    assert sorted(kept) == np.flatnonzero(labels == 0).tolist()


def test_flame_adds_noise_of_the_median_norm():
    rows = directions(9, d=40_000, spread=0.01)
    still, noisy = px.aggregators.flame(noise=0.0).aggregate(rows), px.aggregators.flame(noise=0.01).aggregate(rows)
    assert float((noisy - still).std()) == pytest.approx(0.01 * float(rows.norm(dim=1).median()), rel=0.03)
    assert px.aggregators.flame(noise=0.01).aggregate(rows).equal(noisy)


def test_flame_reaches_as_far_as_it_is_told():
    rows = torch.cat([directions(6, spread=0.1), directions(2, spread=0.6, seed=8)])
    kept = [
        len([n for n in px.aggregators.flame(0.0, reach).outcome(rows).notes if n.kind == "chosen"])
        for reach in (1.0, 1000.0)
    ]
    assert 4 < kept[0] <= 6 and kept[1] == 8


@given(st.integers(2, 8), st.integers(0, 50))
def test_fltrust_is_its_equation(n, seed):
    rows = rows_of(n, seed=seed)
    rows[1] = rows[0] + 0.5 * rows[1]
    root = rows[0]
    trust = [max(0.0, cosine(row, root)) for row in rows[1:]]
    scaled = [row * (root.norm() / row.norm()) for row in rows[1:]]
    expected = sum(t * s for t, s in zip(trust, scaled, strict=True)) / sum(trust)
    torch.testing.assert_close(px.aggregators.fltrust().aggregate(rows), expected)


def test_fltrust_stands_a_large_reversed_majority():
    honest = directions(4)
    rows = torch.cat([honest, -100 * directions(6, seed=4)])
    assert cosine(px.aggregators.fltrust(root=0).aggregate(rows), honest.mean(0)) > 0.95
    with pytest.raises(px.TooFewRows, match="root, worker 12, is missing"):
        px.aggregators.fltrust(root=12).aggregate(rows)
    with pytest.raises(px.TooFewRows, match="no row points where"):
        px.aggregators.fltrust().aggregate(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))


def test_weak_differential_privacy_is_a_chain_of_what_is_there():
    rows = rows_of(5, 20_000).float()
    scheme = px.parse("chain(clip(norm=2.0), mean(), noise(std=0.01))")
    stack = Stack.of(rows)
    out, _ = scheme(Stack(stack.rows, stack.layout, stack.sources, stack.weights, received=True), None, px.Round())
    cut = rows * (2.0 / rows.norm(dim=1))[:, None]
    assert float((out.rows[0] - cut.mean(0)).std()) == pytest.approx(0.01, rel=0.05)


def test_krum_and_multi_krum_say_whom_they_chose():
    rows = torch.cat([directions(7), 50 * directions(2, seed=4)])
    for rule, many in ((px.aggregators.krum(f=2), 1), (px.aggregators.multi_krum(f=2), 5)):
        chosen = [note.worker for note in rule.outcome(rows).notes if note.kind == "chosen"]
        assert len(chosen) == many and not {7, 8} & set(chosen)

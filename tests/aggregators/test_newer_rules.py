# SPDX-License-Identifier: Apache-2.0
"""Meamed, MDA, SMEA, CAF, ARC, DnC, SignGuard and the robust learning rate, against their definitions and claims."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.layout import Layout
from phalanx.core.stack import Stack
from tests.cases import draws

rules = px.aggregators


def rows_of(n, d=7, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chosen(rule, rows):
    return sorted(note.worker for note in rule.outcome(rows).notes if note.kind == "chosen")


def diameter(rows):
    return float(torch.cdist(rows, rows).max())


def worst_variance(rows):
    centred = rows - rows.mean(0)
    return float(torch.linalg.eigvalsh(centred.T @ centred / len(rows))[-1])


@given(st.integers(1, 9), st.integers(0, 3), st.integers(0, 99))
def test_meamed_takes_the_values_near_the_median(n, f, seed):
    if n <= 2 * f:
        return
    rows = rows_of(n, 5, seed)
    median = rows.quantile(0.5, dim=0)
    expected = torch.stack(
        [column[(column - m).abs().argsort()[: n - f]].mean() for column, m in zip(rows.T, median, strict=True)]
    )
    torch.testing.assert_close(rules.meamed(f).aggregate(rows), expected)


@given(st.integers(3, 10), st.integers(1, 4), st.integers(0, 99))
@draws(40)
def test_mda_has_the_smallest_diameter_of_all_subsets(n, f, seed):
    if n <= 2 * f:
        return
    rows = rows_of(n, 3, seed)
    kept = chosen(rules.mda(f), rows)
    assert len(kept) == n - f
    least = min(diameter(rows[list(subset)]) for subset in combinations(range(n), n - f))
    assert diameter(rows[kept]) == pytest.approx(least, rel=1e-9)
    torch.testing.assert_close(rules.mda(f).aggregate(rows), rows[kept].mean(0))


def test_mda_finds_the_subset_among_more_rows_than_could_be_tried():
    honest, far = rows_of(30, 20), 100 * rows_of(20, 20, seed=1)
    assert chosen(rules.mda(20), torch.cat([far[:7], honest, far[7:]])) == list(range(7, 37))
    assert chosen(rules.mda(2), torch.ones(5, 3)) and len(chosen(rules.mda(2), torch.ones(5, 3))) == 3


@given(st.integers(3, 9), st.integers(1, 3), st.integers(0, 99))
@draws(40)
def test_smea_has_the_smallest_worst_variance_of_all_subsets(n, f, seed):
    if n <= 2 * f:
        return
    rows = rows_of(n, 4, seed)
    kept = chosen(rules.smea(f), rows)
    least = min(worst_variance(rows[list(subset)]) for subset in combinations(range(n), n - f))
    assert len(kept) == n - f and worst_variance(rows[kept]) == pytest.approx(least, rel=1e-6)
    torch.testing.assert_close(rules.smea(f).aggregate(rows), rows[kept].mean(0))


def test_smea_refuses_more_subsets_than_it_can_look_at():
    with pytest.raises(ValueError, match=r"smea\(f=10\) would look at 3,268,760 subsets of 25 rows.*caf\(f=10\)"):
        rules.smea(10).aggregate(rows_of(25))


@given(st.integers(3, 12), st.integers(0, 4), st.integers(0, 99))
@draws(40)
def test_caf_is_algorithm_2(n, f, seed):
    if n <= 2 * f:
        return
    rows = rows_of(n, 4, seed)
    weights, least, expected = np.ones(n), np.inf, None
    x = rows.numpy()
    while weights.sum() > n - 2 * f + 1e-12:
        mean = weights @ x / weights.sum()
        centred = x - mean
        values, vectors = np.linalg.eigh((centred.T * weights) @ centred / weights.sum())
        if values[-1] < least:
            least, expected = values[-1], mean
        along = (centred @ vectors[:, -1]) ** 2
        weights = np.maximum(weights * (1 - along / along[weights > 0].max()), 0)
    if f == 0:
        expected = x.mean(0)
    torch.testing.assert_close(rules.caf(f).aggregate(rows), torch.from_numpy(expected), rtol=1e-6, atol=1e-9)


@given(st.integers(1, 12), st.integers(0, 5), st.integers(0, 99))
def test_arc_cuts_the_longest_rows_to_the_next_length(n, f, seed):
    if n <= 2 * f:
        return
    rows = rows_of(n, 4, seed)
    norms = rows.norm(dim=1)
    limit = norms.sort(descending=True).values[2 * f * (n - f) // n]
    expected = rows * (limit / norms).clamp(max=1)[:, None]
    torch.testing.assert_close(rules.arc(f).aggregate(rows), expected if n > 1 else expected[0])


def test_arc_leaves_installed_values_alone():
    layout = Layout.of(torch.nn.BatchNorm1d(2))
    rows = torch.ones(5, layout.d)
    rows[0] *= 100
    out = rules.arc(1)(Stack.of(rows, layout), None, px.Round())[0].rows
    cut = layout.stepped
    torch.testing.assert_close(out[0], torch.cat([torch.ones(cut), torch.full((layout.d - cut,), 100.0)]))


def test_the_robust_rate_turns_around_what_few_agree_on():
    rows = torch.tensor([[1.0, 1.0, 3.0], [2.0, -1.0, -1.0], [3.0, 1.0, -1.0], [2.0, 1.0, 0.0]])
    expected = torch.tensor([2.0, -0.5, -0.25])
    torch.testing.assert_close(rules.robust_lr(4.0).aggregate(rows), expected)
    torch.testing.assert_close(rules.robust_lr(0.0).aggregate(rows), rows.mean(0))


def test_dnc_leaves_out_the_rows_that_move_the_mean_most():
    honest = rows_of(12, 400) + 1
    crafted = honest.mean(0) - 3 * honest.std(0)
    rows = torch.cat([crafted.expand(3, -1), honest])
    assert chosen(rules.dnc(3), rows) == list(range(3, 15))
    # a sample of a hundred coordinates shows the same
    assert chosen(rules.dnc(3, coordinates=100, samples=3), rows)[0] >= 3
    with pytest.raises(px.TooFewRows, match="dnc: each of the 3 rows is an outlier in one of 500 samples"):
        rules.dnc(1, coordinates=1, samples=500).aggregate(rows_of(3, 50))


def test_signguard_finds_other_lengths_and_other_signs():
    generator = torch.Generator().manual_seed(3)
    # three of four entries of an honest row are positive
    honest = torch.rand(11, 2000, generator=generator) * torch.where(
        torch.rand(11, 2000, generator=generator) < 0.75, 1.0, -1.0
    )
    rows = torch.cat([honest, -honest[:2], 50 * honest[:1], 0.001 * honest[:1]])
    assert chosen(rules.signguard(sample=1.0), rows) == list(range(11))
    expected = honest * (rows.norm(dim=1).median() / honest.norm(dim=1)).clamp(max=1)[:, None]
    torch.testing.assert_close(rules.signguard(sample=1.0).aggregate(rows), expected.mean(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "build",
    [
        lambda: rules.meamed(-1),
        lambda: rules.mda(26),
        lambda: rules.smea(-1),
        lambda: rules.caf(-1),
        lambda: rules.arc(-1),
        lambda: rules.dnc(1, coordinates=0),
        lambda: rules.dnc(1, samples=0),
        lambda: rules.dnc(1, share=0.0),
        lambda: rules.dnc(1, share=float("inf")),
        lambda: rules.signguard(lower=3.0, upper=2.0),
        lambda: rules.signguard(sample=0.0),
        lambda: rules.robust_lr(float("nan")),
    ],
)
def test_wrong_settings_are_one_sentence(build):
    with pytest.raises(ValueError, match=r"needs|searches for") as error:
        build()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rule", ["mda(f=4)", "smea(f=4)", "caf(f=4)", "meamed(f=4)", "dnc(f=4)", "arc(f=4), median()"])
@pytest.mark.parametrize("attack", ["reverse(c=100)", "ipm(epsilon=5.0)", "alie(z=1.5)", "min_max()", "fang()"])
def test_four_of_seventeen_move_the_result_by_no_more_than_honest_rows_differ(rule, attack):
    # the claim of these papers: an error bounded by the spread of honest rows, whatever the others send
    scheme = px.parse(f"chain({attack}, gather(dense()), {rule})")
    rows = rows_of(17, 50) + 1
    stack, _ = scheme(Stack.of(rows), None, px.Round(byzantine=frozenset({0, 5, 9, 16}), world=px.LocalCollective(17)))
    honest = rows[[i for i in range(17) if i not in (0, 5, 9, 16)]]
    spread = float((honest - honest.mean(0)).norm(dim=1).mean())
    assert float((stack.rows[0] - honest.mean(0)).norm()) < spread

# SPDX-License-Identifier: Apache-2.0
"""The rules against their definitions, written out by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

import phalanx as px
from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.aggregators.majority import Majority
from tests.aggregators.test_kernels import close, exact, make_rows, nearest_to_median, tables, working
from tests.cases import draws, each
from tests.examples import in_order

SEEDS = st.integers(0, 2**31)
ROBUST = (
    "median()",
    "trimmed_mean(f=3)",
    "trimmed_mean(ratio=0.2)",
    "geometric_median()",
    "krum(f=3)",
    "multi_krum(f=3)",
    "multi_krum(f=3, m=5)",
    "bulyan(f=3)",
    "bulyan(f=3, one_shot=True)",
    "centered_clip()",
    "centered_clip(tau=5.0, iterations=10)",
)
RULES = (*ROBUST, "mean()", "majority()", "hierarchy(mean(), median(), groups=5)")


def stack_of(rows: torch.Tensor, ids=None, **fields) -> px.Stack:
    stack = px.Stack.of(rows, ids=ids)
    return replace(stack, received=True, **fields)


def normal(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return make_rows(n, d, "normal", dtype, "plain", seed)


def krum_scores(x: np.ndarray, f: int, left: list[int], neighbours: int | None = None) -> dict[int, float]:
    neighbours = len(left) - f - 2 if neighbours is None else neighbours
    return {i: sum(sorted(((x[i] - x[j]) ** 2).sum() for j in left if j != i)[:neighbours]) for i in left}


def ranked(scores: dict[int, float]) -> list[int]:
    order = sorted(scores, key=scores.__getitem__)
    values = np.array([scores[i] for i in order])
    # rounding may exchange rows with equal scores, and then there is more than one right answer
    assume((np.diff(values) > 1e-4 * values[1:]).all())
    return order


def bulyan_rows(x: np.ndarray, f: int) -> list[int]:
    left, chosen = list(range(len(x))), []
    for _ in range(len(x) - 2 * f):
        scores = krum_scores(x, f, left, max(1, len(left) - f - 2))
        # with one neighbour the two nearest rows have one score, and the rows themselves decide
        order = sorted(left, key=lambda i: (scores[i], x[i].tolist()))
        values = [scores[i] for i in order]
        assume(len(left) == 1 or values[1] == values[0] or values[1] - values[0] > 1e-4 * values[1])
        left.remove(order[0])
        chosen.append(order[0])
    return chosen


@st.composite
def ranked_rows(draw, multiple: int):
    f = draw(st.integers(0, 2))
    n = multiple * f + 3 + draw(st.integers(0, 6))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    kind = draw(st.sampled_from(["normal", "offset", "huge", "tiny"]))
    form = draw(st.sampled_from(["plain", "transposed", "every third column"]))
    return f, make_rows(n, draw(st.sampled_from([1, 3, 20, 200])), kind, dtype, form, draw(SEEDS))


@given(ranked_rows(2), SEEDS)
def test_krum_and_multi_krum(case, m):
    f, rows = case
    n = len(rows)
    order = ranked(krum_scores(exact(rows), f, list(range(n))))
    assert torch.equal(px.aggregators.krum(f=f).aggregate(rows), rows[order[0]])
    close(px.aggregators.multi_krum(f=f).aggregate(rows), exact(rows)[order[: n - f - 2]].mean(axis=0), rows)
    m = 1 + m % n
    close(px.aggregators.multi_krum(f=f, m=m).aggregate(rows), exact(rows)[order[:m]].mean(axis=0), rows)


@draws(60)
@given(ranked_rows(4))
def test_bulyan(case):
    f, rows = case
    chosen = bulyan_rows(exact(rows), f)
    close(
        px.aggregators.bulyan(f=f).aggregate(rows), nearest_to_median(working(rows)[chosen], len(chosen) - 2 * f), rows
    )


@draws(60)
@given(ranked_rows(4))
def test_one_shot_bulyan(case):
    f, rows = case
    theta = len(rows) - f - 2
    chosen = ranked(krum_scores(exact(rows), f, list(range(len(rows)))))[:theta]
    close(
        px.aggregators.bulyan(f=f, one_shot=True).aggregate(rows),
        np.sort(exact(rows)[chosen], axis=0)[f : theta - f].mean(0),
        rows,
    )


@given(tables())
def test_median_trimmed_mean_and_mean(rows):
    n, x = len(rows), exact(rows)
    s = np.sort(working(rows), axis=0)
    median = torch.from_numpy((s[(n - 1) // 2] + s[n // 2]) / 2).to(rows.dtype)
    assert torch.equal(px.aggregators.median().aggregate(rows), median)
    close(px.aggregators.mean().aggregate(rows), x.mean(axis=0), rows)
    f = (n - 1) // 3
    close(px.aggregators.trimmed_mean(f=f).aggregate(rows), np.sort(x, axis=0)[f : n - f].mean(axis=0), rows)


@each(("n", "ratio", "f"), [(100, 0.29, 29), (10, 0.3, 3), (10, 0.49, 4), (7, 0.0, 0), (1, 0.4, 0)])
def test_trimmed_ratio_rounds_down(n, ratio, f):
    rows = normal(n, 30, n)
    assert torch.equal(
        px.aggregators.trimmed_mean(ratio=ratio).aggregate(rows), px.aggregators.trimmed_mean(f=f).aggregate(rows)
    )


@given(tables())
def test_majority_counts_signs(rows):
    votes = (exact(rows) > 0).sum(axis=0) - (exact(rows) < 0).sum(axis=0)
    assert (exact(px.aggregators.majority().aggregate(rows)) == np.sign(votes)).all()


def test_majority_installs_the_median_of_values():
    layout = px.Layout(("w", "running_var"), (torch.Size([4]), torch.Size([3])), num_installed=1)
    rows = normal(5, 7, 0, torch.float32)
    out, _ = Majority()(px.Stack.of(rows, layout), None, px.Round())
    assert torch.equal(out.rows[0, :4], px.aggregators.majority().aggregate(rows[:, :4]))
    assert torch.equal(out.rows[0, 4:], px.aggregators.median().aggregate(rows[:, 4:]))


def total_distance(z: np.ndarray, x: np.ndarray, w: np.ndarray) -> float:
    return float(w @ np.linalg.norm(x - z, axis=1))


@draws(60)
@given(st.integers(1, 12), st.sampled_from([1, 2, 3, 10]), SEEDS, st.booleans())
def test_geometric_median_attains_the_least_sum_within_its_gap(n, d, seed, weighted):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    x[: n // 3] = x[0]
    w = rng.uniform(0.5, 2, n) if weighted else np.ones(n)
    outcome = px.aggregators.geometric_median().outcome(torch.from_numpy(x), w)
    (gap,) = [note.value for note in outcome.notes if note.kind == "gap"]
    value = total_distance(outcome.rows[0].numpy(), x, w)
    starts = [*x, np.median(x, axis=0), outcome.rows[0].numpy()]
    least = min(total_distance(z, x, w) for z in starts)
    for start in starts[-2:]:
        found = minimize(total_distance, start, (x, w), method="Nelder-Mead", options={"maxiter": 300})
        least = min(least, found.fun)
    assert value - least <= gap * value + 1e-12
    # a row that is nearly the best is approached slowly
    assert gap < 1e-2


def test_geometric_median_converges_on_training_rows():
    rows = normal(45, 10_000, 5, torch.float32)
    rows[:5] *= 100
    (gap,) = [note.value for note in px.aggregators.geometric_median().outcome(rows).notes]
    assert 0 < gap < 3e-6


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_geometric_median_follows_the_scale_of_the_rows(scale):
    rows = normal(9, 50, 1, torch.float32)
    rows[0] = 1e3
    expected = px.aggregators.geometric_median().aggregate(rows)
    torch.testing.assert_close(
        px.aggregators.geometric_median().aggregate(rows * scale) / scale, expected, rtol=1e-3, atol=1e-3
    )


def test_geometric_median_of_few_or_equal_rows():
    rows = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    median = px.aggregators.geometric_median()
    assert torch.equal(median.aggregate(rows[:1]), rows[0])
    torch.testing.assert_close(median.aggregate(rows), torch.tensor([2.0, 2.0]))
    assert torch.equal(median.aggregate(rows[:1].expand(6, 2)), rows[0])
    assert torch.equal(median.aggregate(rows[[0, 0, 1]]), rows[0])
    assert torch.equal(median.aggregate(rows, weights=[1, 3]), rows[1])


def test_weight_is_as_good_as_copies():
    rows = normal(5, 8, 3)
    copied = px.aggregators.geometric_median().aggregate(rows[[0, 1, 1, 1, 2, 3, 4, 4]])
    weighted = px.aggregators.geometric_median().aggregate(rows, weights=[1, 3, 1, 1, 2])
    torch.testing.assert_close(copied, weighted, rtol=1e-4, atol=1e-4)


def clipped_mean(x: np.ndarray, v: np.ndarray, tau: float | None, iterations: int) -> np.ndarray:
    for _ in range(iterations):
        apart = np.linalg.norm(x - v, axis=1)
        radius = np.median(apart) if tau is None else tau
        v = v + np.mean(
            [(row - v) * min(1.0, radius / a if a else 1.0) for row, a in zip(x, apart, strict=True)], axis=0
        )
    return v


@draws(50)
@given(tables(12), st.sampled_from([None, 0.1, 10.0]), st.integers(1, 5))
def test_centered_clip_by_definition(rows, tau, iterations):
    assume(rows.dtype in (torch.float32, torch.float64))
    start = np.median(exact(rows), axis=0)
    expected = clipped_mean(exact(rows), start, tau, iterations)
    result = exact(px.aggregators.centered_clip(tau=tau, iterations=iterations).aggregate(rows))
    apart = np.linalg.norm(exact(rows) - start, axis=1)
    # rows that are cut at tau and cancel leave the rounding of what was summed
    summed = min(apart.max(), np.inf if tau is None else tau)
    assert np.linalg.norm(result - expected) <= 1e-3 * np.median(apart) + 1e-6 * (summed + np.linalg.norm(expected))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_centered_clip_follows_the_scale_of_the_rows(scale):
    rows = normal(9, 50, 1, torch.float32)
    rows[0] = 1e3
    expected = px.aggregators.centered_clip().aggregate(rows)
    torch.testing.assert_close(
        px.aggregators.centered_clip().aggregate(rows * scale) / scale, expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_centered_clip_of_narrow_rows(dtype):
    rows = normal(9, 40, 2, dtype)
    expected = clipped_mean(exact(rows), np.median(exact(rows), axis=0), None, 3)
    torch.testing.assert_close(px.aggregators.centered_clip().aggregate(rows), torch.from_numpy(expected).to(dtype))


def test_centered_clip_goes_on_from_the_previous_aggregate():
    layout = px.Layout(("a", "b"), (torch.Size([2, 3]), torch.Size([4])))
    rule = px.aggregators.centered_clip(tau=1.0, iterations=2)
    first, second = normal(7, 10, 1), normal(7, 10, 2) + 1
    out, state = rule(px.Stack.of(first, layout), None, px.Round())
    assert {k: v.shape for k, v in state["centre"].items()} == dict(zip(layout.names, layout.shapes, strict=True))
    assert torch.equal(layout.join(state["centre"]), out.rows[0])
    kept = {k: v.clone() for k, v in state["centre"].items()}
    after, _ = rule(px.Stack.of(second, layout), state, px.Round(index=1))
    expected = clipped_mean(second.numpy(), out.rows[0].numpy(), 1.0, 2)
    torch.testing.assert_close(after.rows[0], torch.from_numpy(expected))
    assert all(torch.equal(kept[k], state["centre"][k]) for k in kept)


@given(ranked_rows(2))
def test_nnm_mixes_nearest_rows(case):
    f, rows = case
    x, n = exact(rows), len(rows)
    out, _ = px.aggregators.nnm(f=f)(stack_of(rows), None, px.Round())
    for i in range(n):
        apart = {j: ((x[i] - x[j]) ** 2).sum() for j in range(n)}
        apart[i] = -1.0
        nearest = ranked({j: a + 1.0 * (j == i) for j, a in apart.items()})[: n - f]
        close(out.rows[i], x[nearest].mean(axis=0), rows)


@given(st.integers(1, 20), st.integers(1, 6), SEEDS)
def test_bucketing_averages_each_row_once(n, size, seed):
    rows = normal(n, 5, seed)
    weights = torch.rand(n, dtype=torch.float64) + 0.5
    out, _ = px.aggregators.bucketing(size=size)(stack_of(rows, weights=weights, gated=True), None, px.Round(seed=seed))
    assert len(out.rows) == -(-n // size) == px.aggregators.bucketing(size=size).rows_out(n)
    assert sorted(itertools.chain(*out.sources)) == list(range(n))
    for row, source, weight in zip(out.rows, out.sources, out.weights, strict=True):
        members = list(source)
        torch.testing.assert_close(row, weights[members] @ rows[members] / weights[members].sum())
        torch.testing.assert_close(weight, weights[members].sum())


def test_bucketing_draws_anew_in_every_round():
    rows = normal(12, 3, 0)
    rule = px.aggregators.bucketing(size=3)
    drawn = {rule(stack_of(rows), None, px.Round(index=i))[0].sources for i in range(5)}
    assert len(drawn) == 5


@pytest.mark.parametrize(
    "expression", ["bucketing(size=2)", "hierarchy(mean(), median(), groups=4)", "nnm(f=2)", *RULES]
)
def test_order_in_the_stack_does_not_matter(expression):
    rule = px.parse(expression)
    rows, ids = normal(16, 40, 9), list(range(3, 19))
    turn = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    here, _ = rule(stack_of(rows, ids, erased=1), None, px.Round(seed=4))
    there, _ = rule(stack_of(rows[turn], [ids[i] for i in turn], erased=1), None, px.Round(seed=4))
    pairs = dict(zip(there.sources, there.rows, strict=True))
    assert set(pairs) == set(here.sources)
    for source, row in zip(here.sources, here.rows, strict=True):
        torch.testing.assert_close(row, pairs[source], rtol=1e-9, atol=1e-9)


def test_krum_breaks_ties_by_the_rows():
    """Of three rows the two nearest always have one score."""
    rows = normal(3, 20, 2)
    outs = [px.aggregators.krum(f=0).aggregate(rows[list(turn)]) for turn in itertools.permutations(range(3))]
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_hierarchy_of_means_is_the_weighted_mean():
    rows = normal(11, 6, 1)
    weights = list(range(1, 12))
    both = px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.mean(), groups=4).aggregate(rows, weights)
    torch.testing.assert_close(both, px.aggregators.mean().aggregate(rows, weights))


def test_hierarchy_with_one_group_or_one_row_a_group():
    rows = normal(9, 20, 1)
    assert torch.equal(
        px.aggregators.hierarchy(px.aggregators.median(), px.aggregators.mean(), groups=1).aggregate(rows),
        px.aggregators.median().aggregate(rows),
    )
    assert torch.equal(
        px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=9).aggregate(rows),
        px.aggregators.median().aggregate(rows),
    )


def test_hierarchy_prints_itself():
    rule = px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=5)
    assert repr(rule) == "hierarchy(mean(), median(), groups=5)"
    assert px.parse(repr(rule)) == rule


def test_hierarchy_asks_its_rules_for_their_requirements():
    rule = px.aggregators.hierarchy(px.aggregators.multi_krum(f=2), px.aggregators.mean(), groups=2)
    assert rule.rows_out(15) == 1
    with pytest.raises(px.TooFewRows, match=r"multi_krum needs n >= 2f \+ 3"):
        rule.rows_out(13)
    with pytest.raises(px.TooFewRows, match="n=6"):
        rule.aggregate(normal(13, 4, 0))
    with pytest.raises(px.TooFewRows, match="krum needs"):
        px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.krum(f=2), groups=5).rows_out(45)
    with pytest.raises(px.TooFewRows, match="groups=5"):
        px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=5).rows_out(4)
    with pytest.raises(ValueError, match="gives 7 rows"):
        px.aggregators.hierarchy(px.aggregators.nnm(f=1), px.aggregators.mean(), groups=2).rows_out(15)


def test_erased_rows_count_in_the_groups_of_a_hierarchy():
    rule = px.aggregators.hierarchy(px.aggregators.multi_krum(f=2), px.aggregators.mean(), groups=2)
    rows = normal(15, 10, 3)
    rows[[2, 9]] = float("nan")
    # two groups of 7 and 6 rows: too few for f = 2, and enough for what is left of f
    assert rule.aggregate(rows).isfinite().all()
    robust = px.aggregators.hierarchy(px.aggregators.mean(), px.aggregators.median(), groups=5)
    rows = normal(15, 10, 3)
    rows[:3] = float("nan")
    assert robust.aggregate(rows).isfinite().all()


def test_hierarchy_keeps_the_state_and_notes_of_its_rules():
    rule = px.aggregators.hierarchy(px.aggregators.centered_clip(), px.aggregators.centered_clip(), groups=2)
    _, state = rule(stack_of(normal(6, 4, 0)), None, px.Round())
    assert set(state) == {"inner/0", "inner/1", "outer"}
    rule = px.aggregators.hierarchy(px.aggregators.geometric_median(), px.aggregators.geometric_median(), groups=3)
    assert [note.kind for note in rule.outcome(normal(9, 4, 0)).notes] == ["gap"] * 4


@pytest.mark.parametrize(
    ("expression", "n", "f"),
    [
        ("hierarchy(mean(), median(), groups=5)", 15, 2),
        ("hierarchy(multi_krum(f=2), mean(), groups=2)", 15, 2),
        ("hierarchy(trimmed_mean(f=1), median(), groups=3)", 15, 3),
        ("hierarchy(bulyan(f=2), mean(), groups=1)", 15, 2),
    ],
)
def test_hierarchy_knows_what_it_stands(expression, n, f):
    rule = px.parse(expression)
    assert rule.tolerates(n) == f
    for seed in range(20):
        rows = normal(n, 10, seed) * 0.1
        rows[:f] = 1e6
        assert rule.aggregate(rows, seed=seed).abs().max() < 1


def test_even_groups():
    assert even_groups(15, 4) == [range(0, 4), range(4, 8), range(8, 12), range(12, 15)]
    for n in range(1, 30):
        for groups in range(1, n + 1):
            cuts = even_groups(n, groups)
            expected = np.array_split(np.arange(n), groups)
            assert [list(c) for c in cuts] == [list(e) for e in expected]


def copies(groups: int, r: int, d: int = 4) -> torch.Tensor:
    return normal(groups, d, 7).repeat_interleave(r, dim=0)


def notes_of(stack: px.Stack, kind: str) -> list:
    return [note.value if note.worker is None else note.worker for note in stack.notes if note.kind == kind]


def vote(rule, rows, ids=None, byzantine=(), size=1, **fields):
    round = px.Round(byzantine=frozenset(byzantine), world=px.LocalCollective(size))
    return in_order(rule)(stack_of(rows, ids, **fields), None, round)[0]


def test_vote_returns_what_most_members_hold():
    rows = copies(5, 3)
    rows[[1, 6, 14]] = 9.0
    out = vote(px.coding.group_vote(r=3), rows, byzantine={1, 6, 14})
    assert torch.equal(out.rows, copies(5, 1))
    assert out.sources == ((0, 2), (3, 4, 5), (7, 8), (9, 10, 11), (12, 13))
    assert notes_of(out, "outvoted") == [1, 6, 14] and notes_of(out, "lost_groups") == [0]
    assert out.erased == 0 and out.weights.tolist() == [1.0] * 5


def test_one_changed_bit_loses_the_vote():
    rows = copies(2, 3, d=70_000)
    rows[4, 69_999] = torch.nextafter(rows[4, 69_999], torch.tensor(9.0, dtype=rows.dtype))
    assert notes_of(vote(px.coding.group_vote(r=3), rows), "outvoted") == [4]


def test_colluding_majority_takes_the_group():
    rows = copies(3, 3)
    rows[[3, 5]] = -1.0
    out = vote(px.coding.group_vote(r=3), rows, byzantine={3, 5})
    assert (out.rows[1] == -1).all()
    assert notes_of(out, "lost_groups") == [1] and notes_of(out, "outvoted") == [4]


def test_no_majority():
    rows = copies(3, 3)
    rows[3], rows[4] = 1.0, 2.0
    zero = vote(px.coding.group_vote(r=3), rows)
    assert (zero.rows[1] == 0).all() and len(zero.rows) == 3 and zero.erased == 0 and zero.sources[1] == (3, 4, 5)
    without = vote(px.coding.group_vote(r=3, none="exclude"), rows)
    assert len(without.rows) == 2 and without.erased == 1
    for out in (zero, without):
        assert notes_of(out, "undecided") == [1] and notes_of(out, "outvoted") == []


def test_half_is_no_majority():
    rows = copies(1, 4)
    rows[2:] = 1.0
    assert (vote(px.coding.group_vote(r=4), rows).rows == 0).all()


def test_vote_knows_workers_by_name_and_not_by_place():
    rows = copies(5, 3)
    rows[[0, 4]] = 8.0
    ids = [14, 0, 3, 13, 7, 5, 1, 4, 12, 8]  # no worker of group 3 is here, one of group 2 is missing
    rows[[7, 8]] = 5.0
    out = vote(px.coding.group_vote(r=3), rows[ids], ids, size=15, erased=5)
    assert (out.rows[0] == 0).all()
    assert out.sources == ((0, 1), (3, 5), (7, 8), (12, 13, 14))
    assert (out.rows[2] == 5).all() and torch.equal(out.rows[3], rows[14])
    assert out.erased == 1 and notes_of(out, "outvoted") == [4]


def test_workers_that_sit_out_leave_the_groups_as_they_are():
    rows = copies(5, 3)
    ids = [1, 2, 6, 7, 12]
    out = vote(px.coding.group_vote(r=3), rows[ids], ids, size=15)
    assert out.sources == ((1, 2), (6, 7), (12,)) and out.erased == 2


def test_rows_that_the_gate_drops_are_absent_members():
    rows = copies(5, 3)
    rows[[0, 7]] = float("nan")
    rows[1] = 3.0
    rule = in_order(px.chain(px.coding.group_vote(r=3), px.aggregators.median()))
    out, _ = rule(stack_of(rows), None, px.Round())
    expected = copies(5, 1)
    expected[0] = 0  # one against one
    assert torch.equal(out.rows[0], px.aggregators.median().aggregate(expected))
    assert notes_of(out, "excluded") == [0, 7]


def test_vote_counts_faults_in_groups_afterwards():
    rows = copies(15, 3)
    rows[[0, 1, 2, 9]] = float("inf")
    voted = vote(px.coding.group_vote(r=3), rows)
    assert voted.erased == 1 and len(voted.rows) == 14
    krum, _ = px.aggregators.krum(f=6)(voted, None, px.Round())
    assert len(krum.rows) == 1


def test_vote_assigns_contiguous_groups():
    rule = in_order(px.coding.group_vote(r=3))
    assert rule.assign(8).units == ((0,),) * 4 + ((1,),) * 4
    assert rule.rows_out(8) == 2 and rule.rows_out(45) == 15
    for n in range(3, 40):
        groups = rule.assign(n).units
        assert len(groups) == n and len(set(groups)) == rule.rows_out(n) == n // 3
        assert all(groups.count(g) >= 3 for g in set(groups))
    for call in (rule.assign, rule.rows_out):
        with pytest.raises(px.TooFewRows, match="n=2, r=3"):
            call(2)


def test_vote_weighs_a_group_by_its_examples_once():
    rows = copies(2, 3)
    rows[5] = 0.5
    weights = torch.tensor([96.0, 96, 96, 32, 32, 64], dtype=torch.float64)
    out = vote(px.coding.group_vote(r=3), rows, weights=weights, gated=True)
    assert out.weights.tolist() == [96.0, 32.0]


def test_vote_of_merged_rows_is_refused():
    scheme = px.chain(px.aggregators.bucketing(size=2), px.coding.group_vote(r=3))
    with pytest.raises(ValueError, match="before the stages that merge"):
        scheme(stack_of(normal(12, 3, 0)), None, px.Round())


@each("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("expression", RULES)
def test_form_comes_out_as_it_went_in(expression, dtype):
    rule = px.parse(expression)
    for form in ("plain", "transposed", "every third column", "one row expanded"):
        rows = make_rows(16, 33, "normal", dtype, form, 5)
        before = rows.clone()
        out = rule.aggregate(rows)
        assert out.dtype == dtype and out.shape == (33,) and out.isfinite().all()
        assert torch.equal(rows, before)
        torch.testing.assert_close(out, rule.aggregate(rows.contiguous()))
    array = rule.aggregate(make_rows(16, 33, "normal", torch.float32, "plain", 5).numpy())
    assert isinstance(array, np.ndarray) and array.shape == (33,)


@each("value", [float("nan"), float("inf"), 1e30, 1e17, -1e4])
@pytest.mark.parametrize("expression", ROBUST)
def test_f_bad_rows_move_a_rule_by_no_more_than_honest_rows_differ(expression, value):
    rule = px.parse(expression)
    rows = normal(16, 50, 2, torch.float32)
    rows[[1, 7, 8], 3:40] = value
    out = rule.outcome(rows)
    assert out.rows.norm() < 2 * 50**0.5
    excluded = [note.worker for note in out.notes if note.kind == "excluded"]
    assert excluded == ([] if abs(value) < 1e18 else [1, 7, 8])


@each(
    ("expression", "n", "words"),
    [
        ("krum(f=2)", 6, "krum needs n >= 2f + 3 rows, got n=6, f=2"),
        ("multi_krum(f=1, m=9)", 8, "n >= m"),
        ("bulyan(f=2)", 10, "bulyan needs n >= 4f + 3 rows, got n=10, f=2"),
        ("trimmed_mean(f=3)", 6, "trimmed_mean needs n > 2f rows, got n=6, f=3"),
        ("hierarchy(mean(), median(), groups=5)", 4, "n=4, groups=5"),
        ("median()", 0, "median needs"),
    ],
)
def test_too_few_rows_state_the_requirement(expression, n, words):
    rule = px.parse(expression)
    for call in (lambda: rule.aggregate(torch.zeros(n, 3)), lambda: rule.rows_out(n)):
        with pytest.raises(px.TooFewRows) as caught:
            call()
        assert words in str(caught.value)


@each(
    "expression",
    [
        "trimmed_mean()",
        "trimmed_mean(f=1, ratio=0.1)",
        "trimmed_mean(ratio=0.5)",
        "trimmed_mean(f=-1)",
        "krum(f=-1)",
        "multi_krum(f=1, m=0)",
        "bulyan(f=-2)",
        "nnm(f=-1)",
        "geometric_median(nu=0)",
        "geometric_median(max_iterations=0)",
        "centered_clip(tau=0)",
        "centered_clip(iterations=0)",
        "bucketing(size=0)",
        "group_vote(r=0)",
        "group_vote(r=3, none='maybe')",
        "hierarchy(mean(), median(), groups=0)",
        "hierarchy(gather(dense()), median(), groups=2)",
    ],
)
def test_fields_that_no_run_can_use(expression):
    with pytest.raises(ValueError, match=expression.partition("(")[0]):
        px.parse(expression)


def test_rules_that_prepare_rows_take_plain_rows():
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [90.0, 90.0]])
    mixed = px.aggregators.nnm(f=1).aggregate(rows)
    assert mixed.shape == (4, 2)
    torch.testing.assert_close(mixed[:3], rows[:3].mean(dim=0).expand(3, 2))
    buckets = px.aggregators.bucketing(size=2).aggregate(rows.numpy(), seed=3)
    assert buckets.shape == (2, 2) and np.allclose(buckets.mean(axis=0), rows.mean(dim=0))
    assert px.aggregators.bucketing(size=4).aggregate(list(rows)).shape == (2,)


def test_chains_take_plain_rows_with_and_without_a_wire():
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 0.0], [90.0, torch.nan]])
    prepared = px.chain(px.aggregators.nnm(f=1), px.aggregators.median())
    torch.testing.assert_close(prepared.aggregate(rows), rows[:3].mean(dim=0))
    assert [note.worker for note in prepared.outcome(rows).notes if note.kind == "excluded"] == [3]
    whole = px.parse("chain(clip(norm=1.0), gather(dense()), trimmed_mean(f=1))")
    short = rows[:3] / rows[:3].norm(dim=1, keepdim=True).clamp(min=1.0)
    torch.testing.assert_close(whole.aggregate(rows[:3]), short.median(dim=0).values)
    summed = px.parse("chain(reduce(dense()))").aggregate(rows[:3].double().numpy())
    assert np.allclose(summed, rows[:3].mean(dim=0)) and summed.dtype == np.float64
    with pytest.raises(ValueError, match="takes rows of one shape and dtype, got 1 others"):
        whole.aggregate([*rows[:3], torch.zeros(5)])

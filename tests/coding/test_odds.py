# SPDX-License-Identifier: Apache-2.0
"""The odds of DETOX: against all placements, against drawn ones, and under their bounds."""

import json
import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from typer.testing import CliRunner

import phalanx as px
from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.coding import odds
from phalanx.tools.cli.app import app
from phalanx.tools.pairings import PAIRINGS
from tests.cases import each

SMALL = [(n, q, r) for n in (1, 2, 5, 7, 9, 10) for q in range(0, n + 1, 2) for r in range(1, n + 1)]
TOLERATED = {pairing.name: pairing.tolerance for pairing in PAIRINGS}


def by_placement(n: int, q: int, r: int, ties: bool) -> list[Fraction]:
    """P(q_hat = k), from every placement."""
    groups, counts = even_groups(n, n // r), [0] * (n + 1)
    for placed in combinations(range(n), q):
        wrong = 0
        for group in groups:
            twice = 2 * sum(worker in placed for worker in group)
            wrong += twice > len(group) or (ties and twice == len(group))
        counts[wrong] += 1
    return [Fraction(count, math.comb(n, q)) for count in counts]


@pytest.mark.parametrize("ties", [False, True])
@each(("n", "q", "r"), SMALL)
def test_the_distribution_is_that_of_all_placements(n: int, q: int, r: int, ties: bool) -> None:
    true = by_placement(n, q, r, ties)
    worst = max(k for k, p in enumerate(true) if p)
    assert odds.worst_votes(n, q, r, ties) == worst
    found = odds.byzantine_votes(n, q, r, ties)
    assert found.shape == (worst + 1,)
    assert found == pytest.approx([float(p) for p in true[: worst + 1]], abs=1e-13)
    mean = float(sum(k * p for k, p in enumerate(true)))
    assert odds.expected_byzantine_votes(n, q, r, ties) == pytest.approx(mean, abs=1e-14)
    for tolerance in range(worst + 1):
        above = float(sum(true[tolerance + 1 :]))
        assert odds.probability_above(n, q, r, tolerance, ties=ties) == pytest.approx(above, abs=1e-12)
        thrice = odds.probability_above(n, q, r, tolerance, rounds=3, ties=ties)
        assert thrice == pytest.approx(1 - (1 - above) ** 3, abs=1e-12)


@pytest.mark.parametrize(("n", "q", "r", "ties"), [(200, 60, 3, False), (203, 70, 5, False), (130, 40, 4, True)])
def test_the_distribution_is_that_of_drawn_placements(n: int, q: int, r: int, ties: bool) -> None:
    rng, draws = np.random.default_rng(0), 20_000
    placed = rng.permuted(np.tile(np.arange(n) < q, (draws, 1)), axis=1)
    wrong = np.zeros(draws, dtype=int)
    for group in even_groups(n, n // r):
        twice = 2 * placed[:, group.start : group.stop].sum(axis=1)
        wrong += (twice > len(group)) | (ties & (twice == len(group)))
    found = odds.byzantine_votes(n, q, r, ties)
    seen = np.bincount(wrong, minlength=len(found)) / draws
    # five standard deviations
    assert (np.abs(seen - found) <= 5 * np.sqrt(found * (1 - found) / draws) + 1e-4).all()
    assert wrong.mean() == pytest.approx(odds.expected_byzantine_votes(n, q, r, ties), rel=0.02)


@each(("n", "q", "r"), [(220_000, 19_958, 11), (220_000, 19_958, 5), (100_003, 900, 3), (1000, 1000, 7)])
def test_large_numbers_of_workers_have_the_mean_of_the_exact_sum(n: int, q: int, r: int) -> None:
    found = odds.byzantine_votes(n, q, r)
    assert found.sum() == pytest.approx(1) and found.min() >= 0
    mean = float(found @ np.arange(len(found)))
    assert mean == pytest.approx(odds.expected_byzantine_votes(n, q, r), rel=1e-9)


def test_the_number_of_the_chapter() -> None:
    n, q = 45, 5
    exact = Fraction(q, 3) * (q - 1) * (3 * n - 2 * q - 2) / ((n - 1) * (n - 2))
    assert odds.expected_byzantine_votes(n, q, 3) == pytest.approx(float(exact)) == pytest.approx(0.433, abs=5e-4)
    assert odds.worst_votes(n, q, 3) == q // 2
    assert odds.bound_expected(n, q, 3) == pytest.approx(0.6996, abs=1e-4)


@given(st.integers(1, 400), st.integers(0, 12).map(lambda i: 2 * i + 1), st.integers(0, 10_000))
def test_no_bound_is_below_the_exact_mean(groups: int, r: int, q: int) -> None:
    n = groups * r
    assume(q <= n)
    bound = odds.bound_expected(n, q, r)
    if bound is not None:
        assert odds.expected_byzantine_votes(n, q, r) <= bound * (1 + 1e-12)


@given(st.integers(2, 300), st.sampled_from([3, 5, 7, 9, 11]), st.integers(1, 16), st.floats(0.001, 0.499))
def test_the_bound_on_the_votes_is_exceeded_as_rarely_as_it_says(groups: int, r: int, q: int, delta: float) -> None:
    n = groups * r
    assume(q <= n)
    bound = odds.bound_votes(n, q, r, delta)
    if bound is not None:
        assert odds.probability_above(n, q, r, math.floor(bound)) <= delta


def test_bounds_say_nothing_where_the_theory_does() -> None:
    assert odds.bound_expected(200, 5, 5) is None, "e = 1/40"
    assert odds.bound_expected(205, 5, 5) is not None
    assert odds.bound_expected(3, 1, 3) is None, "n < 6"
    assert odds.bound_expected(46, 1, 3) is None and odds.bound_expected(44, 1, 4) is None
    assert odds.bound_votes(45, 5, 3, 0.1) is None
    assert odds.bound_votes(1100, 10, 11, 0.1) == pytest.approx(1 + 2 * math.log2(10))


def test_theorem_73_never_applies_to_the_chapters_experiments() -> None:
    asked = odds.theorem_73(45, 5, 3, 0.1)
    assert not asked.applies and "q / n <= 1/80" in asked.sentence
    few = odds.theorem_73(1100, 10, 11, 0.1)
    assert not few.applies and few.groups == math.ceil(128 * math.log(10)) and "there are 100 votes" in few.sentence
    enough = odds.theorem_73(11_000, 10, 11, 0.1, d=10)
    assert enough.applies and enough.groups == math.ceil(128 * math.log(100))


@pytest.mark.parametrize("name", TOLERATED)
def test_the_smallest_r_is_the_first_that_holds_the_risk(name: str) -> None:
    n, q, risk, rounds = 45, 12, 0.01, 10
    found = odds.smallest_r(n, q, TOLERATED[name], risk, rounds, ties=True)
    assert (found is None) == (name in ("Multi-Krum in 2 groups, mean", "Bulyan, mean"))
    for r in range(1, (found or n) + 1, 2):
        f = TOLERATED[name](n // r)
        fits = f is not None and odds.probability_above(n, q, r, f, rounds, ties=True) <= risk
        assert fits == (r == found)


def test_more_rounds_and_less_risk_ask_for_more() -> None:
    least = [odds.smallest_r(45, 5, 0, risk, rounds) for risk, rounds in ((0.1, 1), (0.01, 1), (0.01, 1000))]
    assert least == sorted(least, key=lambda r: r or 99) and least[0] != least[2]
    assert odds.smallest_r(45, 30, 0, 0.01) is None
    assert odds.smallest_r(45, 5, 0, 0.001, most=5) is None


def test_what_a_pairing_tolerates_at_the_chapters_size() -> None:
    found = {name: tolerance(15) for name, tolerance in TOLERATED.items()}
    assert found["mean"] == 0
    assert found["mean in 3 groups, median"] == 1 and found["mean in 5 groups, median"] == 2
    assert found["Multi-Krum in 2 groups, mean"] == 2 and found["Bulyan, mean"] == 3
    assert {tolerance(2) for name, tolerance in TOLERATED.items() if name != "mean"} == {None}


@pytest.mark.parametrize("pairing", PAIRINGS, ids=lambda p: p.name)
def test_a_pairing_stands_what_it_says(pairing) -> None:
    import torch

    rows = torch.randn(15, 40, generator=torch.Generator().manual_seed(1)) * 0.1 + 1
    tolerated = pairing.tolerance(15)
    for seed in range(20):
        rows[:tolerated] = 1e6
        assert float((pairing.rule(15).aggregate(rows, seed=seed) - 1).abs().max()) < 1


@each(
    ("arguments", "words"),
    [
        ((10, 11, 3), "0 <= q <= n"),
        ((10, -1, 3), "0 <= q <= n"),
        ((10, 2, 0), "1 <= r <= n"),
        ((10, 2, 11), "1 <= r <= n"),
        ((0, 0, 1), "n >= 1"),
    ],
)
def test_what_no_placement_has_is_a_sentence(arguments: tuple[int, int, int], words: str) -> None:
    for function in (odds.byzantine_votes, odds.expected_byzantine_votes, odds.bound_expected, odds.worst_votes):
        with pytest.raises(ValueError, match=words):
            function(*arguments)


def advise(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["advise", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output + result.stderr
    return result.stdout if code == 0 else result.stderr


def test_advise_counts_byzantine_votes() -> None:
    found = json.loads(advise("--byzantine", "5", "--workers", "45", "--json"))
    assert [row["r"] for row in found["table"]] == [1, 3, 5, 7, 9, 11, 13, 15]
    row = found["table"][1]
    assert row["groups"] == 15 and row["expected"] == pytest.approx(0.433, abs=5e-4) and row["worst"] == 2
    assert row["pairings"]["mean"]["above"] == pytest.approx(1 - odds.byzantine_votes(45, 5, 3)[0])
    assert row["pairings"]["Bulyan, mean"] == {"tolerates": 3, "above": 0.0}
    assert found["table"][5]["pairings"]["mean in 5 groups, median"] == {"tolerates": None, "above": None}
    assert found["exact"] == {"repetition": 11, "cyclic": 11} and found["smallest_r"]["mean in 5 groups, median"] == 3
    text = advise("--byzantine", "5", "--workers", "45")
    assert "0.433" in text and "r=2q+1=11" in text and "mean in 3 groups, median: r=5" in text


@each(("n", "q"), [(45, 5), (44, 5), (7, 1), (8, 1)])
def test_exact_recovery_costs_what_the_codes_assign(n: int, q: int) -> None:
    exact = json.loads(advise("--byzantine", str(q), "--workers", str(n), "--r", "1", "--json"))["exact"]
    assignment = px.coding.cyclic(s=q).assign(n)
    assert assignment is not None
    assert {len(units) for units in assignment.units} == {exact["cyclic"]}


def test_advise_takes_r_risk_and_rounds() -> None:
    options = ("--r", "3", "--r", "4", "--risk", "0.5", "--redrawn", "7")
    found = json.loads(advise("--byzantine", "2", "--workers", "21", *options, "--json"))
    assert [row["r"] for row in found["table"]] == [3, 4] and found["rounds"] == 7 and found["risk"] == 0.5
    above = found["table"][0]["pairings"]["mean"]["above"]
    assert above == pytest.approx(1 - odds.byzantine_votes(21, 2, 3)[0] ** 7)
    assert "too few" in advise("--byzantine", "3", "--workers", "6") and px.aggregators.mean().tolerates(6) == 0


@each(
    ("arguments", "words"),
    [
        (("--byzantine", "5"), "add --workers"),
        (("--byzantine", "5", "--workers", "45", "--bandwidth", "1Gbit"), "--bandwidth about step times"),
        (("--byzantine", "5", "--workers", "45", "--repeats", "3"), "--repeats about step times"),
        (("--byzantine", "5", "--workers", "45", "--scheme", "signum()"), "--scheme about step times"),
        (("probe.json", "--byzantine", "5", "--workers", "45"), "a probe about step times"),
        (("--byzantine", "46", "--workers", "45"), "q=46 of n=45"),
        (("--byzantine", "5", "--workers", "45", "--r", "46"), "r=46 for n=45"),
        (("--byzantine", "5", "--workers", "45", "--risk", "2"), "probability in [0, 1]"),
        (("--byzantine", "5", "--workers", "45", "--redrawn", "0"), "at least 1 round"),
        (("--r", "3", "--workers", "45"), "add --byzantine"),
    ],
)
def test_a_question_that_cannot_be_is_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    assert words in advise(*arguments, code=2)

# SPDX-License-Identifier: Apache-2.0
"""How many votes of DETOX Byzantine workers win: exact odds, and the bounds of the theory.

n workers stand in n // r groups whose sizes differ by one at most, as `group_vote(r)` makes them. q of them are
Byzantine, placed at random, and collude. A group is lost when more than half of its members are Byzantine, and
undecided when half of them are, which only groups of even size can be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from phalanx.aggregators.kernels.shuffle import even_groups
from phalanx.core.expression import require

Tolerance = int | Callable[[int], int | None]  # wrong votes that are harmless; of so many votes, None when too few

_DEVIATIONS = 40  # standard deviations of the number of Byzantine workers within which all is counted
_CHUNK = 1 << 20  # complex numbers at once


def byzantine_votes(n: int, q: int, r: int, ties: bool = False) -> np.ndarray:
    """P(q_hat = k) for k = 0 .. the worst case, in float64: the distribution of the number of lost groups.

    Were each worker Byzantine by itself, the groups would be independent. So the joint distribution of lost groups and
    Byzantine workers is a product of polynomials, which is read off by Fourier sums where there are q of the latter.
    Absolute errors are below 1e-10, at 45 workers below 1e-14.

    Args:
        n: workers, >= 1.
        q: Byzantine ones among them, 0 .. n.
        r: workers in a group, 1 .. n.
        ties: count undecided groups as well; their votes are zero or missing, and so not right.
    Raises:
        ValueError: numbers that no placement has.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205 (Section 7.2.1 of Wang's dissertation).
    Differs: the distribution instead of bounds on its mean and tail.
    """
    worst = worst_votes(n, q, r, ties)
    sizes = _sizes(n, q, r)
    odds = np.zeros(worst + 1)
    if worst == 0 or set(sizes) == {1}:
        odds[worst] = 1.0
        return odds
    share = q / n
    within = np.array([[*_binomial(s, share), *[0.0] * (max(sizes) - s)] for s in sizes])
    lost = np.array([[_is_lost(b, s, ties) for b in range(max(sizes) + 1)] for s in sizes])
    counts = np.array(list(sizes.values()))
    chance = (within * lost).sum(axis=1)
    mean, deviation = float(counts @ chance), math.sqrt(float(counts @ (chance * (1 - chance))))
    # what lies outside the window or beyond the period is less than rounding
    first = max(0, math.floor(mean - 12 * deviation - 20))
    window = min(worst + 1, math.ceil(mean + 12 * deviation + 40)) - first
    period = min(n + 1, math.ceil(_DEVIATIONS * math.sqrt(n * share * (1 - share))) + 100)
    turn = np.exp(-2j * np.pi * np.arange(window) / window)  # marks a lost group
    total = np.zeros(window, dtype=complex)
    step = max(1, _CHUNK // window)
    for start in range(0, period, step):
        angle = 2j * np.pi * np.arange(start, min(start + step, period)) / period
        powers = np.exp(-np.multiply.outer(angle, np.arange(max(sizes) + 1)))
        product = np.repeat(np.exp(angle * q)[:, None], window, axis=1)
        for chances, is_lost, count in zip(within, lost, counts, strict=True):
            kept, gone = powers @ (chances * ~is_lost), powers @ (chances * is_lost)
            product *= (kept[:, None] + gone[:, None] * turn) ** float(count)
        total += product.sum(axis=0)
    window_odds = np.maximum(np.fft.ifft(total).real, 0.0)
    # a Fourier sum of period `window` gives place k to k modulo it
    odds[first : first + window] = np.roll(window_odds, -(first % window))
    return odds / odds.sum()


def expected_byzantine_votes(n: int, q: int, r: int, ties: bool = False) -> float:
    """E[q_hat], the mean number of lost groups: for each size its groups times the tail of a hypergeometric law.

    Args: as of `byzantine_votes`.

    >>> round(expected_byzantine_votes(45, 5, 3), 3)
    0.433

    Source: arXiv:1907.12205 (first lines of the proof of Theorem 7.4 of Wang's dissertation).
    Differs: r need not divide n.
    """
    return sum(count * _chance_lost(n, q, size, ties) for size, count in _sizes(n, q, r).items())


def probability_group_lost(n: int, q: int, r: int, ties: bool = False) -> float:
    """P(a group is lost), for a group drawn at random. Args: as of `byzantine_votes`."""
    return expected_byzantine_votes(n, q, r, ties) / (n // r)


def bound_expected(n: int, q: int, r: int) -> float | None:
    """An upper bound on E[q_hat]: q (4 e - 2 e^2) / 3 for r = 3, else 2 q (40 e (1 - e))^((r - 1) / 2) / r, e = q / n.

    It is q for r = 1, and None where the theory gives no bound: for r that is even or does not divide n; for r = 3 if
    n < 6; for r >= 5 if e >= 1/40 or n < 2 r.

    Source: arXiv:1907.12205 (Theorem 7.4 and Lemma 7.5 of Wang's dissertation).
    Differs: the theorem asks for r > 3; its constant 40 holds because r is odd and so at least 5.
    """
    _check(n, q, r)
    share = q / n
    if r % 2 == 0 or n % r:
        return None
    if r == 1:
        return float(q)
    if r == 3:
        return q * (4 * share - 2 * share**2) / 3 if n >= 6 else None
    if share >= 1 / 40 or n < 2 * r:
        return None
    return 2 * q * (40 * share * (1 - share)) ** ((r - 1) / 2) / r


def bound_votes(n: int, q: int, r: int, delta: float) -> float | None:
    """1 + 2 log2(1 / delta), which q_hat exceeds with probability at most delta.

    None where the theory says nothing: delta outside (0, 1/2), q / n > 1/80, r < 3 + 2 log2(q), or an r that is even,
    does not divide n, or is more than n / 2.

    Args:
        delta: accepted probability; lower gives a higher bound.
    Source: arXiv:1907.12205 (Corollary 7.2 of Wang's dissertation). Differs: the logarithm is that to base 2.
    """
    _check(n, q, r)
    applies = r % 2 == 1 and n % r == 0 and n >= 2 * r and q / n <= 1 / 80 and r >= 3 + 2 * math.log2(max(q, 1))
    return 1 + 2 * math.log2(1 / delta) if applies and 0 < delta < 0.5 else None


def worst_votes(n: int, q: int, r: int, ties: bool = False) -> int:
    """The groups that q workers win if they may choose their places: floor(q / ceil(r / 2)) where r divides n.

    Args: as of `byzantine_votes`.

    >>> worst_votes(45, 5, 3)
    2
    """
    won, left = 0, q
    for size, count in sorted(_sizes(n, q, r).items()):
        price = -(-size // 2) if ties else size // 2 + 1
        here = min(count, left // price)
        won, left = won + here, left - here * price
    return won


def probability_above(n: int, q: int, r: int, tolerance: int, rounds: int = 1, ties: bool = False) -> float:
    """P(q_hat > tolerance in any of the rounds).

    Args:
        tolerance: Byzantine votes that are harmless, >= 0.
        rounds: in each of which the Byzantine workers are drawn anew; 1 also where they are drawn once for all rounds.
    """
    require(rounds >= 1, f"the odds need rounds >= 1, got rounds={rounds}")
    if worst_votes(n, q, r, ties) <= tolerance:
        return 0.0
    once = float(byzantine_votes(n, q, r, ties)[max(0, tolerance + 1) :].sum())
    return 1.0 if once >= 1 else -math.expm1(rounds * math.log1p(-once))


def smallest_r(
    n: int, q: int, tolerance: Tolerance, risk: float, rounds: int = 1, ties: bool = False, most: int | None = None
) -> int | None:
    """The smallest odd r with more Byzantine votes than tolerated in at most `risk` of all cases; None without one.

    Args:
        tolerance: Byzantine votes that are harmless, or a function from the number of votes to that, None when a rule
            cannot work with so few.
        risk: accepted probability over all rounds, in [0, 1]; lower asks for more redundancy.
        most: the largest r to try; n when None.
    """
    require(0 <= risk <= 1, f"the risk must be a probability, got risk={risk}")
    for r in range(1, (n if most is None else min(n, most)) + 1, 2):
        harmless = tolerance(n // r) if callable(tolerance) else tolerance
        if harmless is not None and probability_above(n, q, r, harmless, rounds, ties) <= risk:
            return r
    return None


@dataclass(frozen=True)
class Asked:
    """The number of groups that theorem 7.3 needs, and whether it applies.

    Args:
        groups: k, the number of groups of votes whose means are aggregated.
        applies: whether n workers with this r have enough votes, and the theorem's other conditions hold.
        sentence: the reason, as a sentence for the user.
    """

    groups: int
    applies: bool
    sentence: str


def theorem_73(n: int, q: int, r: int, delta: float, d: int | None = None) -> Asked:
    """Whether the theory promises DETOX an error of order sigma sqrt(ln(1 / delta) / batch), and with how many groups.

    k = 128 ln(1 / delta) for the geometric median of k means, 128 ln(d / delta) for the coordinate-wise median and the
    trimmed mean, rounded up.

    Args:
        delta: accepted probability, in (0, 1/2).
        d: entries of a row, for the rules that work coordinate by coordinate; None for the geometric median.
    Source: arXiv:1907.12205 (Theorem 7.3 of Wang's dissertation). Differs: k is rounded up.
    """
    require(0 < delta < 0.5, f"theorem 7.3 needs delta in (0, 1/2), got delta={delta}")
    require(d is None or d >= 1, f"theorem 7.3 needs rows of d >= 1 entries, got d={d}")
    k, votes = math.ceil(128 * math.log((d or 1) / delta)), n // r
    if bound_votes(n, q, r, delta) is None:
        needed = 3 + 2 * math.log2(max(q, 1))
        why = (
            f"it needs q / n <= 1/80, which is {q / n:.3g} here, and an odd r >= {needed:.3g} that divides n, not r={r}"
        )
        return Asked(k, False, f"theorem 7.3 says nothing: {why}")
    if k > votes:
        return Asked(k, False, f"theorem 7.3 says nothing: it needs k={k} groups of votes, and there are {votes} votes")
    return Asked(k, True, f"theorem 7.3 applies with k={k} groups of {votes // k} votes or one more")


def _check(n: int, q: int, r: int) -> None:
    require(n >= 1, f"the odds need n >= 1 workers, got n={n}")
    require(0 <= q <= n, f"the odds need 0 <= q <= n Byzantine workers, got q={q} of n={n}")
    require(1 <= r <= n, f"the odds need groups of 1 <= r <= n workers, got r={r} for n={n}")


def _sizes(n: int, q: int, r: int) -> Counter[int]:
    """How many groups there are of each size."""
    _check(n, q, r)
    return Counter(map(len, even_groups(n, n // r)))


def _is_lost(byzantine: int, size: int, ties: bool) -> bool:
    return 2 * byzantine > size or (ties and 2 * byzantine == size)


def _binomial(size: int, share: float) -> Iterator[float]:
    return (math.comb(size, b) * share**b * (1 - share) ** (size - b) for b in range(size + 1))


def _chance_lost(n: int, q: int, size: int, ties: bool) -> float:
    """P(a group of this size is lost): C(q, b) C(n - q, size - b) / C(n, size), summed over b, exact in integers."""
    lost = [b for b in range(min(size, q) + 1) if _is_lost(b, size, ties) and size - b <= n - q]
    return sum(math.comb(q, b) * math.comb(n - q, size - b) for b in lost) / math.comb(n, size)

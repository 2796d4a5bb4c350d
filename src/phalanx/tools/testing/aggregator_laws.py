# SPDX-License-Identifier: Apache-2.0
"""What every rule at the server promises."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from phalanx.core.gate import Gate
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage, TooFewRows, chain
from phalanx.tools.testing.compare import case, excluded, expect, finite, refused, same, stream
from phalanx.tools.testing.law import Law, Trial, law
from phalanx.tools.testing.rows import LAYOUT, WORKERS, honest_stack

LAWS: list[Law] = []


@law(LAWS, "aggregator", "row order")
def _row_order(t: Trial) -> None:
    """The order of the rows does not matter."""
    stack = t.stack()
    out, _ = t.run(stack)
    for seed in range(3):
        order = torch.randperm(t.n, generator=t.stream(seed)()).tolist()
        other, _ = t.run(stack.pick(order))
        with case("rows in the order", order):
            expected, seen = sorted(out.sources), sorted(other.sources)
            expect(seen == expected, f"expected the sources {expected}, saw {seen}")
            place = [other.sources.index(source) for source in out.sources]
            same("the results", out.rows, other.rows[place], (1e-5, 1e-5))
            same("the weights", out.weights, other.weights[place], (1e-7, 1e-7))


@law(LAWS, "aggregator", "too few rows")
def _too_few_rows(t: Trial) -> None:
    """Too few rows are a TooFewRows that says how many the rule needs; no rows are always too few."""
    for n in range(t.n + 1):
        with case(f"{n} rows"):
            try:
                count = t.method.rows_out(n)
            except TooFewRows as error:
                expect("needs" in str(error) and f"n={n}" in str(error), f"expected 'needs' and n={n}, saw '{error}'")
                with refused(f"n={n}"):
                    t.run(t.stack(n=n))
            else:
                expect(n > 0, f"expected a TooFewRows, saw rows_out(0) = {count}")
                out, _ = t.run(honest_stack(t.method, n, seed=t.seed, run_seed=t.seed))
                expect(len(out.rows) == count, f"expected {count} rows, saw {len(out.rows)}")


def _to_one_row(t: Trial) -> tuple[Stage, int]:
    """The rule with what makes one row of its rows, and the f that it stands."""
    ending = "mean()" if t.method.assign(t.n) is not None else "median()"
    whole = t.method if t.method.rows_out(t.n) == 1 else chain(t.method, parse(ending))
    return whole, t.method.tolerates(t.n)


def _liars(t: Trial, count: int) -> list[int]:
    """Workers, at most one in each group with equal work, so that no group is lost."""
    allocation = t.method.assign(t.n, t.seed)
    if allocation is None:
        order = [*range(2, t.n, 4), *(i for i in range(t.n) if i % 4 != 2)]
        return sorted(order[:count])
    return sorted({units: worker for worker, units in enumerate(allocation.units)}.values())[:count]


def _spread(stack: Stack, bad: Collection[int]) -> tuple[Tensor, Tensor]:
    """The mean of the honest rows, and how far the farthest of them is from it."""
    rows = stack.rows[[i for i in range(len(stack.rows)) if i not in bad]]
    mean = rows.mean(dim=0)
    return mean, (rows - mean).norm(dim=1).max()


def _corruptions(rows: Tensor, f: int) -> Iterator[tuple[str, Tensor]]:
    """What f colluding workers may send instead of their rows."""
    mean, spread = rows.mean(dim=0), rows.std(dim=0)
    yield "huge", 1e15 * torch.ones_like(rows[:f])
    yield "reversed", -100 * rows[:f]
    yield "constant", torch.full_like(rows[:f], -100.0)
    yield "turned", (-mean).expand(f, -1)
    yield "one lie", (mean + 3 * spread).expand(f, -1)
    yield "a far lie", (mean + 30 * spread).expand(f, -1)
    yield "zero", torch.zeros_like(rows[:f])
    yield "scattered", 1e4 * torch.randn(rows[:f].shape, generator=stream(0)())


@law(LAWS, "aggregator", "tolerance", lambda rule: rule.tolerates(WORKERS) > 0)
def _tolerance(t: Trial) -> None:
    """With as many corrupted rows as a rule says it tolerates, its result stays near the honest rows."""
    whole, f = _to_one_row(t)
    stack = replace(t.stack(), weights=torch.ones(t.n, dtype=torch.float64))
    bad = _liars(t, f)
    mean, spread = _spread(stack, bad)
    # the factor of the geometric median, Pillutla et al. 2019, Lemma 1
    allowed = 2 * (t.n - f) / (t.n - 2 * f) * spread
    for name, lies in _corruptions(stack.rows, len(bad)):
        rows = stack.rows.clone()
        rows[bad] = lies
        for claim in (1.0, 900.0):
            weights = stack.weights.clone()
            weights[bad] = claim
            with case(f"{name} rows of the workers {bad}, with a claimed weight of {claim:g}"):
                out, _ = t.run(replace(stack, rows=rows, weights=weights, received=True), stage=whole)
                away = (out.rows[0] - mean).norm()
                expect(away <= allowed, f"expected a distance of at most {allowed:.3g}, saw {away:.3g}")


HOSTILE = (
    "chain(nan(), gather(dense()))",
    "chain(constant(value=inf), gather(dense()))",
    "chain(constant(value=-1e30), gather(dense()))",
    *(
        f"gather(dense(), forge=malformed('{how}'))"
        for how in ("short", "long", "dtype", "keys", "missing", "weight", "negative_weight", "random")
    ),
)


@law(LAWS, "aggregator", "excluded rows")
def _excluded_rows(t: Trial) -> None:
    """Rows and messages that no honest worker sends are named, and change the result no further."""
    whole, f = _to_one_row(t)
    for hostile in HOSTILE:
        for count in sorted({1, max(f, 1) if t.method.assign(t.n) is None else 1}):
            for dtype in (torch.float16, torch.float32):
                bad = frozenset(_liars(t, count))
                stack = t.stack(dtype=dtype)
                with case(f"{dtype}, the workers {sorted(bad)} send {hostile}"):
                    out, _ = t.run(stack, stage=chain(parse(hostile), whole), byzantine=bad)
                    named = excluded(out)
                    finite("the result", out.rows)
                    expect(
                        named == bad or ("random" in hostile and named <= bad),
                        f"expected that {sorted(bad)} are excluded, saw {sorted(map(str, named))}",
                    )
                    if named == bad:
                        mean, spread = _spread(stack, bad)
                        away = (out.rows[0] - mean).norm()
                        expect(away <= 2 * spread, f"expected a distance of at most {2 * spread:.3g}, saw {away:.3g}")


@law(LAWS, "aggregator", "attackers unknown")
def _attackers_unknown(t: Trial) -> None:
    """A rule does not look at who is Byzantine."""
    unknown, known = (t.run(t.stack(), byzantine=workers)[0] for workers in (frozenset(), t.byzantine))
    same("the rows with and without Byzantine workers in the round", unknown.rows, known.rows)
    expect(known.sources == unknown.sources, f"expected the sources {unknown.sources}, saw {known.sources}")


@law(LAWS, "aggregator", "plain call")
def _plain_call(t: Trial) -> None:
    """`aggregate` on plain rows is the rule on a stack: one row, or several where the rule gives several."""
    # the caller of a plain rule knows the weights
    stack = Gate(weights="trusted").admit(replace(t.stack(), received=True))
    rows = t.run(replace(stack, layout=Layout.flat(LAYOUT.d)), byzantine=frozenset(), seed=0)[0].rows
    same("the results", rows[0] if len(rows) == 1 else rows, t.method.aggregate(stack.rows, weights=stack.weights))

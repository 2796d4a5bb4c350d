# SPDX-License-Identifier: Apache-2.0
"""Exact recovery: the theorems behind the codes, and every pattern of faults that they promise to stand."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.coding.circulant import circulant
from phalanx.coding.code import TooManyFaults
from phalanx.coding.cyclic import LIMIT
from tests.cases import draws, each
from tests.examples import round_of

PAIRS = [(n, s) for n in range(5, 51) for s in range(1, (n - 1) // 2 + 1)]
NUMBERS = [n if n <= 24 else pytest.param(n, marks=pytest.mark.slow) for n in range(5, 51)]
D = 30
EPS = torch.finfo(torch.float32).eps


def units_of(n, seed, d=D, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def decoded(code, rows, missing=()):
    """The mean that a code finds, and whom it names."""
    n = len(rows)
    here = [i for i in range(n) if i not in missing]
    stack = replace(px.Stack.of(rows).pick(here), received=True, erased=len(missing))
    out, _ = code(stack, None, round_of(n))
    return out.rows[0], {note.worker for note in out.notes if note.kind in ("outvoted", "excluded")}


def close(found, truth):
    return float((found.double() - truth).norm() / truth.norm())


# the mathematics of the cyclic code


@each(("n", "s"), PAIRS[::7])
def test_the_code_is_what_the_theorem_says(n, s):
    code, allocation = circulant(n, s), px.coding.cyclic(s=s).assign(n)
    w = allocation.weights_matrix.numpy()
    # theorem 6.5: r = 2s + 1 gradients each are necessary; even n takes one more
    assert set((w > 0).sum(axis=1)) == set((w > 0).sum(axis=0)) == {2 * s + 1 + (n % 2 == 0)}
    assert np.array_equal(w, code.weights) and (w >= 0).all()
    np.testing.assert_allclose(w.sum(axis=0), 1, atol=1e-12)
    frequencies = np.abs(np.fft.fft(w, axis=0)).max(axis=1)
    assert frequencies[code.degree + 1 : n - code.degree].max(initial=0.0) < 1e-12
    assert np.array_equal(np.roll(w, (1, 1), (0, 1)), w)
    np.testing.assert_allclose(code.band.T @ code.band, np.eye(2 * code.degree + 1), atol=1e-12)


@each(("n", "s"), [(5, 1), (6, 1), (7, 2), (8, 2), (9, 3), (10, 3), (11, 2)])
def test_any_n_minus_2s_rows_hold_the_mean(n, s):
    """Lemma 6.8, over all sets."""
    code = circulant(n, s)
    w = code.weights
    for keep in itertools.combinations(range(n), n - 2 * s):
        v = code.recovery(np.array(keep))
        np.testing.assert_allclose(v @ w[list(keep)], np.full(n, 1 / n), atol=1e-9 * (1 + np.abs(v).sum()))


@each("n", [5, 6, 9, 14, 15])
def test_adjacent_gaps_are_the_worst(n):
    for s in range(1, (n - 1) // 2 + 1):
        code = circulant(n, s)
        worst = max(
            np.abs(code.recovery(np.setdiff1d(np.arange(n), gone))).sum()
            for gone in itertools.combinations(range(n), min(s, 3))
        )
        assert worst <= code.amplification(min(s, 3)) * (1 + 1e-9)


# every pattern of faults


def lies(kind, rows, bad, seed):
    """What the workers in `bad` send."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows[bad].shape, generator=generator)
    size = rows.norm(dim=1).median() / D**0.5
    match kind:
        case "colluding":
            return torch.full_like(rows[bad], -100.0)
        case "reversed":
            return -100 * rows[bad]
        case "mixed":
            return rows[bad] + size * noise * 10.0 ** torch.linspace(-3, 6, len(bad)).unsqueeze(1)
        case "zero":
            return torch.zeros_like(rows[bad])
        case _:
            return rows[bad] + float(kind) * size * noise


KINDS = ("colluding", "reversed", "mixed", "zero", "1e-6", "1e-4", "1e-2", "1", "1e3", "1e6")


def positions(n, count, where, seed):
    if where == "adjacent":
        return [(seed + i) % n for i in range(count)]
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count].tolist()


@pytest.mark.parametrize("n", NUMBERS)
@each("s", range(1, 25))
def test_cyclic_recovers_from_every_pattern(n, s):
    if 2 * s + 1 > n:
        return
    code = px.coding.cyclic(s=s)
    units = units_of(n, seed=n)
    truth, rows = units.double().mean(dim=0), code.encode(units, n)
    bound = 10 * code.amplification(n) * EPS
    assert bound < 10 * LIMIT
    # the rows' rounding goes with their size, and the mean is smaller than they are
    scale = float(rows.norm(dim=1).max() / truth.norm())
    # all kinds for small n, and by turns for larger ones
    for trial, kind in list(enumerate(KINDS))[:: 1 if n <= 16 else 3 if n <= 30 else 5]:
        trial, kind = (trial, kind) if n <= 16 else ((trial + n) % 10, KINDS[(trial + n) % 10])
        for where in ("random", "adjacent"):
            count = (s, s, max(1, s // 2))[trial % 3]
            bad = positions(n, count, where, trial + 3 * s)
            sent = rows.clone()
            sent[bad] = lies(kind, rows, bad, trial)
            found, named = decoded(code, sent)
            error = close(found, truth)
            allowed = bound * scale
            if kind in ("1e-6", "1e-4", "mixed"):
                # lies near the rounding may stay, at the size of the rounding that hides them
                allowed += EPS * scale * code.ambiguity(n)
            assert error <= allowed, (kind, where, bad, named, error, allowed)
            if s <= n / 9 and kind not in ("1e-6", "1e-4"):
                assert error <= 1e-4, (kind, where, error)
    found, named = decoded(code, rows)
    assert not named and close(found, truth) <= bound * scale


@each(("n", "s"), PAIRS[::3])
def test_cyclic_with_missing_and_unreadable_rows(n, s):
    code = px.coding.cyclic(s=s)
    units = units_of(n, seed=n)
    truth, rows = units.double().mean(dim=0), code.encode(units, n)
    for gone in range(0, 2 * s + 1, max(1, s // 2)):
        count = (2 * s - gone) // 2
        order = positions(n, gone + count, "random", seed=gone)
        missing, bad = order[:gone], order[gone:]
        sent = rows.clone()
        sent[bad] = -100 * rows[bad]
        # half of the missing never came, half were no numbers
        silent = missing[::2]
        sent[missing[1::2]] = float("nan") if gone % 2 else float("inf")
        found, named = decoded(code, sent, silent)
        keep = np.setdiff1d(np.arange(n), order)
        worst = np.abs(circulant(n, s).recovery(keep)).sum()
        scale = float(rows.norm(dim=1).max() / truth.norm())
        assert close(found, truth) <= 10 * worst * EPS * scale, (gone, count)
        assert set(bad) | set(missing[1::2]) <= named


@pytest.mark.parametrize("n", NUMBERS)
@each("s", range(1, 25))
def test_more_lies_than_s_are_never_accepted_in_silence(n, s):
    if (n, s) not in PAIRS[::5]:
        return
    code = px.coding.cyclic(s=s)
    units = units_of(n, seed=n)
    truth, rows = units.double().mean(dim=0), code.encode(units, n)
    for where in ("random", "adjacent"):
        bad = positions(n, min(s + 1, n - s), where, seed=s)
        sent = rows.clone()
        sent[bad] += 3 * torch.randn(sent[bad].shape, generator=torch.Generator().manual_seed(0))
        try:
            found, named = decoded(code, sent)
        except TooManyFaults as error:
            assert f"more than {s}" in str(error) and f"n={n}" in str(error)
        else:
            # one check is left over for even n, or the code is a mere repetition: then it is found, and said
            assert named or close(found, truth) < 1e-3


@each(("n", "s"), [(n, s) for n, s in PAIRS if n % 2 or s % 2])
def test_repetition_gives_the_bits_of_the_faultless_run(n, s):
    if 2 * s + 1 > n:
        return
    code = px.coding.repetition(r=2 * s + 1)
    allocation = code.assign(n)
    units = units_of(allocation.num_units, seed=n)
    rows = code.encode(units, n)
    free, _ = decoded(code, rows)
    torch.testing.assert_close(free.double(), units.double().mean(dim=0), rtol=1e-5, atol=1e-6)
    groups = [[w for w in range(n) if allocation.unit(w) == g] for g in range(allocation.num_units)]
    for trial, kind in enumerate((*KINDS, "nan", "missing")):
        bad = [w for g in groups for w in [g[(trial + i) % len(g)] for i in range((len(g) - 1) // 2)]]
        sent, missing = rows.clone(), ()
        if kind == "nan":
            sent[bad] = float("nan")
        elif kind == "missing":
            # twice as many that send nothing
            missing = [w for g in groups for w in g[: 2 * ((len(g) - 1) // 2)]]
        else:
            sent[bad] = lies(kind, rows, bad, trial)
        found, named = decoded(code, sent, missing)
        assert found.equal(free), kind
        changed = {w for w in bad if not sent[w].equal(rows[w])}
        assert named == (changed if kind != "missing" else set())


def test_each_group_of_repetition_has_its_own_tolerance():
    assert px.coding.repetition(r=3).tolerances(11) == (1, 1, 1) and px.coding.repetition(r=5).tolerances(13) == (3, 2)
    code = px.coding.repetition(r=3, placement=px.coding.in_order())
    rows = code.encode(units_of(3, 0), 9)
    rows[0], rows[1] = 5.0, 6.0
    with pytest.raises(TooManyFaults, match="group 0"):
        decoded(code, rows)


def test_a_thin_group_is_flagged():
    code = px.coding.repetition(r=3, placement=px.coding.in_order())
    rows = code.encode(units_of(3, 0), 9)
    stack = replace(px.Stack.of(rows).pick([0, 3, 4, 5, 6, 7, 8]), received=True, erased=2)
    out, _ = code(stack, None, round_of(9))
    assert [note.value for note in out.notes if note.kind == "unprotected"] == [1.0]


# hostile rows


@given(
    st.integers(0, 40),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.sampled_from([0.0, 1e-30, 1e-4, 1.0, 1e3]),
    st.integers(0, 99),
    st.booleans(),
)
@draws(60)
def test_hostile_shapes_and_sizes(d, dtype, size, seed, apart):
    n, s = 9, 2
    code = px.coding.cyclic(s=s)
    units = (units_of(n, seed, d) * size).to(dtype)
    rows = code.encode(units, n)
    if apart:
        rows = torch.stack([rows, rows], dim=2)[:, :, 0]
    truth = units.double().mean(dim=0)
    sent = rows.clone()
    bad = positions(n, seed % (s + 1), "random", seed)
    sent[bad] = 1e4 if dtype == torch.float16 else 1e17
    found, named = decoded(code, sent)
    eps = torch.finfo(dtype).eps
    assert found.dtype == dtype and found.shape == (d,)
    tiny = 100 * torch.finfo(dtype).smallest_normal
    largest = float(rows.double().abs().max()) if d else 0.0
    assert float((found.double() - truth).abs().max() if d else 0) <= 30 * code.amplification(n) * eps * largest + tiny
    assert named <= set(bad) and (not d or named == set(bad))


def test_codes_that_would_lose_all_digits_are_refused_with_the_way_out():
    for text in ("cyclic(s=5, noise=0.001)", "cyclic(s=9, noise=0.0001)"):
        with pytest.raises(ValueError, match=r"smaller s.*repetition"):
            px.parse(text).rows_out(45)
    with pytest.raises(px.TooFewRows, match="n=4, s=2"):
        px.coding.cyclic(s=2).rows_out(4)
    with pytest.raises(ValueError, match="odd r"):
        px.coding.repetition(r=2)


def test_rows_behind_a_half_precision_wire():
    n, code = 15, px.coding.cyclic(s=2, noise=2**-10)
    units = units_of(n, 0, 200)
    rows = code.encode(units, n)
    rows[[3, 4]] = 7.0
    stack = px.Stack.of(rows)
    out, _ = px.chain(px.gather(px.codecs.half()), code)(stack, None, round_of(n, byzantine=frozenset({3, 4})))
    assert close(out.rows[0], units.double().mean(dim=0)) < 0.02
    assert {note.worker for note in out.notes if note.kind == "outvoted"} == {3, 4}


RUN = (
    "run(digits(), mlp(hidden=(16,)), phases=(phase(gradient(batch={batch}), chain({attack}, gather(dense()), {code}), "
    "sgd(lr=0.1, momentum=0.5), rounds=12),), workers=9, byzantine={byzantine}, seed=3)"
)


def trained(code, attack="reverse()", byzantine="none()", batch=90):
    trainer = px.train(px.parse(RUN.format(code=code, attack=attack, byzantine=byzantine, batch=batch)))
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()]), trainer.summary()


@pytest.mark.parametrize("attack", ["reverse()", "constant(-100)", "alie(z=1.0)", "nan()"])
def test_training_with_repetition_ends_with_the_same_bits(attack):
    _, free = trained("repetition(r=5)")
    _, summary = trained("repetition(r=5)", attack, "random(2, every=1)")
    assert summary["weights_sha256"] == free["weights_sha256"] and summary["lost_rounds"] == 0


@pytest.mark.parametrize("batch", [90, 95])
def test_training_with_the_cyclic_code_is_training_without_faults(batch):
    plain, _ = trained("mean()", batch=batch)
    for attack in ("reverse()", "constant(-100)", "nan()"):
        weights, summary = trained("cyclic(s=2)", attack, "random(2, every=1)", batch)
        # 12 rounds with momentum, each within rounding
        assert float((weights - plain).norm() / plain.norm()) < 1e-5
        assert summary["accusation_recall"] == 1.0 and summary["accusation_precision"] == 1.0


def test_training_skips_what_the_code_cannot_repair():
    # each tells another lie, so that no row has a majority
    _, summary = trained("repetition(r=3, placement=in_order())", "gaussian()", "workers((0, 1))")
    assert summary["lost_groups"] == 0 and summary["lost_rounds"] == 12
    # two that agree win their group: more than the code stands, and nobody can know
    _, summary = trained("repetition(r=3, placement=in_order())", "reverse()", "workers((0, 1))")
    assert summary["lost_groups"] == 12

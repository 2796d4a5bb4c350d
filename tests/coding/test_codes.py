# SPDX-License-Identifier: Apache-2.0
"""Exact recovery: the theorems behind the codes, and every pattern of faults that they promise to stand."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.coding.code import TooManyFaults
from tests.cases import each
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


def test_training_skips_what_the_code_cannot_repair():
    # each tells another lie, so that no row has a majority
    _, summary = trained("repetition(r=3, placement=in_order())", "gaussian()", "workers((0, 1))")
    assert summary["lost_groups"] == 0 and summary["lost_rounds"] == 12
    # two that agree win their group: more than the code stands, and nobody can know
    _, summary = trained("repetition(r=3, placement=in_order())", "reverse()", "workers((0, 1))")
    assert summary["lost_groups"] == 12

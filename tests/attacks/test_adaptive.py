# SPDX-License-Identifier: Apache-2.0
"""Attacks on a rule that the adversary knows."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.attacks.adaptive import STEPS
from phalanx.core.attack import View
from tests.cases import draws

RULES = (
    "krum(1)",
    "multi_krum(1)",
    "median()",
    "trimmed_mean(1)",
    "flame(noise=0.0)",
    "chain(nnm(1), median())",
    "mean()",
)


def rows_of(n, d, seed, far):
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=rng) + 1
    rows[0] = rows[1:].mean(dim=0) + far * torch.randn(d, generator=rng)
    return rows


def sent(rule, rows):
    bad = torch.zeros(len(rows), dtype=torch.bool)
    bad[0] = True
    view = View(rows, bad, tuple(range(len(rows))))
    row, _ = px.attacks.adaptive(px.parse(rule)).forge(px.Stack.of(rows[:1]), view, {}, px.Round())
    return row


def combined(rule, rows):
    result, _ = px.parse(rule)(replace(px.Stack.of(rows), received=True), None, px.Round())
    return result.rows[0]


@given(st.sampled_from(RULES), st.integers(5, 12), st.integers(0, 100), st.sampled_from([0.1, 1.0, 30.0]))
@draws(40)
def test_no_other_length_takes_the_rule_further(rule, n, seed, far):
    rows = rows_of(n, 20, seed, far)
    mean = rows[1:].mean(dim=0)
    way = (rows[0] - mean).double()

    def along(row):
        return float(combined(rule, torch.cat([row.reshape(1, -1), rows[1:]])).double() @ way)

    got = along(sent(rule, rows))
    tries = [t for k in STEPS for t in (2.0**k * rows[0], mean + 2.0**k * (rows[0] - mean))]
    assert got >= max(map(along, tries)) - 1e-6 * abs(got)


@pytest.mark.parametrize("rule", ["krum(1)", "multi_krum(1)", "flame(noise=0.0)"])
def test_a_row_that_would_be_left_out_gets_in(rule):
    rows = rows_of(10, 50, 0, 30.0)

    def chosen(row):
        outcome = px.parse(rule).outcome(torch.cat([row.reshape(1, -1), rows[1:]]))
        return 0 in [note.worker for note in outcome.notes if note.kind == "chosen"]

    assert not chosen(rows[0]) and chosen(sent(rule, rows))


def test_honest_rows_and_a_round_without_attackers_stay():
    rows = rows_of(6, 5, 1, 1.0)
    scheme = px.chain(px.attacks.adaptive(px.aggregators.median()), px.gather(px.codecs.dense()), px.aggregators.mean())
    world = px.LocalCollective(6)
    calm, _ = scheme.stages[0](px.Stack.of(rows), None, px.Round(world=world))
    hit, _ = scheme.stages[0](px.Stack.of(rows), None, px.Round(byzantine=frozenset({0}), world=world))
    assert calm.rows.equal(rows) and hit.rows[1:].equal(rows[1:]) and not hit.rows[0].equal(rows[0])


def test_a_rule_that_crosses_the_wire_or_leaves_rows_is_refused():
    with pytest.raises(ValueError, match="behind the wire"):
        px.attacks.adaptive(px.chain(px.gather(px.codecs.dense()), px.aggregators.mean()))
    with pytest.raises(ValueError, match="gives one row"):
        sent("nnm(1)", rows_of(6, 5, 1, 1.0))

# SPDX-License-Identifier: Apache-2.0
"""Attacks on a part of the row, and rules for each part."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.core.stack import Stack
from tests.examples import BYZANTINE, honest, round_of

RULES = ("mean()", "median()", "krum(f=2)", "geometric_median()", "trimmed_mean(f=2)", "chain(group_vote(r=3), mean())")


def received(stage: px.Stage, seed: int = 0) -> Stack:
    return replace(honest(stage, seed=seed), received=True)


@pytest.mark.parametrize("text", RULES)
@given(seed=st.integers(0, 99), lie=st.sampled_from([0.0, 3.0, 1e6]))
def test_each_part_is_what_its_rule_alone_makes_of_it(text: str, seed: int, lie: float) -> None:
    rule = px.parse(text)
    stack = received(rule, seed)
    cut = stack.layout.stepped
    rows = stack.rows.clone()
    rows[list(BYZANTINE)] += lie
    # the gate has seen the whole row before either rule sees its part
    stack = px.gate().admit(stack.with_rows(rows))
    out, _ = px.parse(f"split_by_part({text}, median())")(stack, None, round_of())
    head, tail = (Stack.of(part).rows for part in (stack.rows[:, :cut], stack.rows[:, cut:]))
    alone, _ = rule(replace(stack, rows=head, layout=stack.layout.head), None, round_of())
    assert out.rows[0, :cut].equal(alone.rows[0])
    torch.testing.assert_close(out.rows[0, cut:], px.aggregators.median().aggregate(tail))
    assert out.sources == (tuple(range(len(rows))),) and out.layout == stack.layout


def test_a_rule_for_gradients_alone_lets_poisoned_statistics_pass() -> None:
    attack = px.attacks.only_on(px.attacks.constant(100.0), at="installed")
    stack = replace(attack(honest(), None, round_of())[0], received=True)
    whole, plain, both = (
        px.parse(text)(stack, None, round_of())[0].rows[0]
        for text in ("krum(f=3)", "split_by_part(krum(f=3))", "split_by_part(krum(f=3), median())")
    )
    cut = stack.layout.stepped
    assert float(whole[cut:].abs().max()) < 3 and float(both[cut:].abs().max()) < 3
    assert float(plain[cut:].min()) > 10 and plain[:cut].equal(both[:cut])


def test_the_parts_of_an_attack_are_the_attack() -> None:
    attack = px.attacks.reverse(c=7.0)
    stack = honest()
    parts = px.chain(px.attacks.only_on(attack, at="directions"), px.attacks.only_on(attack, at="installed"))
    assert parts(stack, None, round_of())[0].rows.equal(attack(stack, None, round_of())[0].rows)
    with pytest.raises(ValueError, match=r"replacement\(boost=2.0\) aims at directions by itself"):
        px.attacks.only_on(px.attacks.replacement(boost=2.0))
    with pytest.raises(ValueError, match="aims at installed by itself"):
        px.attacks.only_on(px.attacks.only_on(attack, at="installed"))


def test_rules_that_cannot_stand_apart_are_told() -> None:
    with pytest.raises(ValueError, match="stands behind the wire"):
        px.aggregators.split_by_part(px.parse("chain(gather(dense()), mean())"))
    with pytest.raises(ValueError, match=r"nnm\(f=2\) gives 15 rows where split_by_part needs one"):
        px.aggregators.split_by_part(px.aggregators.nnm(f=2)).rows_out(15)
    with pytest.raises(ValueError, match="different assignments of work"):
        px.parse("split_by_part(chain(group_vote(r=3), mean()), chain(group_vote(r=5), mean()))").assign(15)

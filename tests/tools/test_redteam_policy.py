# SPDX-License-Identifier: Apache-2.0
"""Policies of a deployment gate."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phalanx.tools.redteam.policy import FAILED, KEYS, UNKNOWN, Clause, Policy, policy
from tests.cases import each

numbers = st.floats(-10, 10, allow_nan=False)
clauses = st.builds(Clause, st.sampled_from(list(KEYS)), st.sampled_from(["<", "<=", ">", ">="]), numbers)
cases = st.lists(st.lists(clauses, min_size=1, max_size=3), min_size=1, max_size=3)
known = st.dictionaries(st.sampled_from(list(KEYS)), st.none() | numbers)


def written(parts: list[list[Clause]]) -> str:
    return " or ".join(" and ".join(f"{c.key}{c.sign} {c.bound!r}" for c in case) for case in parts)


@given(cases, st.sampled_from([FAILED, 4, 125]))
def test_a_policy_is_read_as_it_is_written(parts: list[list[Clause]], code: int) -> None:
    read = policy(f" {written(parts)} exit {code}")
    assert read == Policy(read.text, tuple(tuple(case) for case in parts), code)
    assert policy(written(parts)).code == FAILED


@given(cases, known)
def test_what_is_not_known_is_neither_true_nor_false(parts: list[list[Clause]], have: dict) -> None:
    """A policy is told exactly where every way to fill the gaps tells it alike, clause by clause."""
    fails = policy(written(parts)).fails(have)
    found = [[clause.true(have) for clause in case] for case in parts]
    bounds = [any(all(t is True or (gap and t is None) for t in case) for case in found) for gap in (False, True)]
    assert fails is (bounds[0] if bounds[0] == bounds[1] else None)


@each(
    ("text", "words"),
    [
        ("", "begins with a word"),
        ("attack > 0.1", "did you mean attack_success"),
        ("excess = 0.1", "followed by one of < <= > >="),
        ("excess >", "followed by a number"),
        ("excess > 0.1 parity < 1", "comes where 'and', 'or', 'exit' or the end should"),
        ("excess > 0.1 and", "begins with a word"),
        ("excess > 0.1 exit 2", "4 to 125"),
        ("excess > 0.1 exit", "4 to 125"),
        ("excess > 0.1 exit 4.5", "4 to 125"),
        ("excess > 0.1 exit 4 or", "comes where"),
        ("excess > 0.1" + " " * 600, "at most 500 characters"),
    ],
)
def test_a_wrong_policy_is_refused_in_a_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"policy|--fail-if") as caught:
        policy(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@given(
    st.text(max_size=40) | st.lists(st.sampled_from([*KEYS, "and", "or", "exit", "<", ">=", "0.1", "7"])).map(" ".join)
)
def test_any_text_is_a_policy_or_refused(text: str) -> None:
    try:
        read = policy(text)
    except ValueError as error:
        assert str(error)
    else:
        assert read.code not in (0, 2, UNKNOWN) and read.cases


def test_a_policy_says_what_it_saw() -> None:
    seen = policy("excess > 0.1 or parity < 0.5").seen({"excess": 0.123456})
    assert seen == "excess 0.1235, parity not known"

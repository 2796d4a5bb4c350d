# SPDX-License-Identifier: Apache-2.0
import pytest

from tests.cases import each


def test_every_case_runs_and_a_failure_names_its_case():
    seen = []

    @each("a", [1, 2, 3])
    @each(("b", "c"), lambda: [(1, "x"), (2, "y")])
    def check(a, b, c):
        seen.append((a, b, c))
        assert (a, b) != (2, 2)

    with pytest.raises(AssertionError) as caught:
        check()
    assert seen == [(a, b, c) for a in (1, 2, 3) for b, c in ((1, "x"), (2, "y"))]
    assert caught.value.__notes__ == ["case: b=2, c='y'", "case: a=2"]


def test_several_failures_are_a_group():
    @each("a", [1, 2, 3])
    def check(a):
        with pytest.raises(ValueError):
            if a == 2:
                raise ValueError

    with pytest.raises(BaseExceptionGroup, match="2 of 3 cases fail") as caught:
        check()
    assert [error.__notes__ for error in caught.value.exceptions] == [["case: a=1"], ["case: a=3"]]


@pytest.mark.parametrize("b", [1])
@each("a", [1, 2])
def test_fixtures_and_parameters_pass(a, b, tmp_path):
    assert a in (1, 2) and b == 1 and tmp_path.is_dir()


def test_no_case_is_a_failure():
    @each("a", [])
    def check(a):
        raise ValueError(a)

    with pytest.raises(AssertionError, match="no case"):
        check()

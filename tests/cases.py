# SPDX-License-Identifier: Apache-2.0
"""Many small cases in one test, and how many examples a property draws."""

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import pytest
from hypothesis import settings

FULL = 100  # examples of a property in the profile `thorough`
SHOWN = 300  # characters of a case in the message of a failure


def each(names: str | tuple[str, ...], values: Iterable[Any] | Callable[[], Iterable[Any]]) -> Callable[..., Any]:
    """Runs a test with every value, as `pytest.mark.parametrize` does, but as one test.

    Every case runs, also after a failure; each failure carries a note that says which case it was.

    Args:
        names: the parameter that takes a value, or several that take the parts of a tuple.
        values: the cases, or a function that makes them when the test runs.
    """
    several = not isinstance(names, str)
    parameters = names if isinstance(names, tuple) else (names,)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        missing = [name for name in parameters if name not in signature.parameters]
        assert not missing, f"{test.__name__} has no parameter {missing}"

        @wraps(test)
        def run_cases(*args: Any, **kwargs: Any) -> None:
            cases = list(values() if callable(values) else values)
            assert cases, "there is no case"
            failures = []
            for case in cases:
                chosen = dict(zip(parameters, case if several else (case,), strict=True))
                try:
                    test(*args, **kwargs, **chosen)
                except (Exception, pytest.fail.Exception) as error:
                    error.add_note("case: " + ", ".join(f"{name}={value!r}"[:SHOWN] for name, value in chosen.items()))
                    failures.append(error)
            if len(failures) == 1:
                raise failures[0]
            if failures:
                raise BaseExceptionGroup(f"{len(failures)} of {len(cases)} cases fail", failures)

        kept = [parameter for name, parameter in signature.parameters.items() if name not in parameters]
        run_cases.__signature__ = signature.replace(parameters=kept)  # pyright: ignore[reportAttributeAccessIssue]
        return run_cases

    return decorate


def draws(count: int) -> settings:
    """Draws `count` examples in the profile `thorough`, and accordingly fewer in the others."""
    profile = settings()
    return settings(max_examples=-(-count * min(profile.max_examples, FULL) // FULL))

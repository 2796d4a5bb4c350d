# SPDX-License-Identifier: Apache-2.0
"""What a deployment gate demands of a red team study, as one line of text."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from phalanx.core.registry import suggest

FAILED, UNKNOWN = 1, 3  # exit codes: a policy fails, a number that one needs is missing
KEYS = {
    "attack_success": "share of edge cases that are called what the attacker wants",
    "excess": "the same above the run without an attack",
    "main_accuracy": "accuracy on the test set",
    "accuracy_lost": "below the plain mean without an attack",
    "parity": "accuracy of the worst served client over that of the best",
    "parity_lost": "below the plain mean without an attack",
    "taken": "share of the attacks in which the rule took the attacker's row",
    "broken": "attacks that break the rule",
    "unfair": "attacks beside which the rule is unfair",
    "costly": "attacks beside which the rule is costly",
    "unknown": "attacks whose verdict is not known",
}
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_TOKEN = re.compile(r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>\w+)|(?P<sign>[<>]=?|\S))")
_MOST = 500  # characters


@dataclass(frozen=True)
class Clause:
    """A number of the study compared with another one."""

    key: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.key} {self.sign} {self.bound:g}"

    def true(self, numbers: Mapping[str, float | None]) -> bool | None:
        """Whether it is so; None where the number is missing."""
        value = numbers.get(self.key)
        return None if value is None else _OPERATORS[self.sign](value, self.bound)


@dataclass(frozen=True)
class Policy:
    """What must not be; `policy` reads one.

    Args:
        text: as it was given.
        cases: it fails where all clauses of one of these are true.
        code: the exit code if it fails.
    """

    text: str
    cases: tuple[tuple[Clause, ...], ...]
    code: int = FAILED

    def fails(self, numbers: Mapping[str, float | None]) -> bool | None:
        """Whether the numbers of an attack on a rule are what must not be; None where one that decides is missing."""
        cases = [_all([clause.true(numbers) for clause in case]) for case in self.cases]
        return True if True in cases else None if None in cases else False

    def seen(self, numbers: Mapping[str, float | None]) -> str:
        """The numbers that it compares, as text: "attack_success 0.31, parity not known"."""
        keys = dict.fromkeys(clause.key for case in self.cases for clause in case)
        words = {key: "not known" if numbers.get(key) is None else f"{numbers[key]:.4g}" for key in keys}
        return ", ".join(f"{key} {word}" for key, word in words.items())


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def policy(text: str) -> Policy:
    """A policy from its text: comparisons joined by `and` and `or`, of which `and` binds closer, and an exit code.

    Args:
        text: "attack_success > 0.1 or accuracy_lost > 0.05 and parity < 0.5 exit 4"; shares are in [0, 1].
    Raises:
        ValueError: what is wrong with it, in one sentence.

    >>> policy("excess > .1 or broken >= 1").cases
    ((Clause(key='excess', sign='>', bound=0.1),), (Clause(key='broken', sign='>=', bound=1.0),))
    """
    if len(text) > _MOST:
        raise ValueError(f"a policy has at most {_MOST} characters, got {len(text)}")
    return _Reader(text).read()


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text.strip()
        self._tokens = [(match.lastgroup or "", match.group().strip()) for match in _TOKEN.finditer(self.text)]

    def read(self) -> Policy:
        cases, case = [], [self._clause()]
        while (word := self._next("word", "and", "or")) is not None:
            if word == "or":
                cases.append(tuple(case))
                case = []
            case.append(self._clause())
        code = self._code() if self._next("word", "exit") else FAILED
        if self._tokens:
            self._fail(f"{self._tokens[0][1]!r} comes where 'and', 'or', 'exit' or the end should")
        return Policy(self.text, (*cases, tuple(case)), code)

    def _clause(self) -> Clause:
        key = self._next("word")
        if key is None:
            self._fail("a comparison begins with a word such as attack_success")
        if key not in KEYS:
            self._fail(f"unknown number {key!r}; {suggest(key, list(KEYS))}")
        sign = self._next("sign", *_OPERATORS)
        if sign is None:
            self._fail(f"{key} is followed by one of {' '.join(_OPERATORS)}")
        bound = self._next("number")
        if bound is None:
            self._fail(f"{key} {sign} is followed by a number such as 0.1")
        return Clause(key, sign, float(bound))

    def _code(self) -> int:
        word = self._next("number")
        code = int(word) if word is not None and word.isdigit() else -1
        if code != FAILED and not UNKNOWN < code < 126:
            self._fail("exit is followed by 1 or a number from 4 to 125; 2 and 3 mean wrong input and missing numbers")
        return code

    def _next(self, kind: str, *words: str) -> str | None:
        """The next token if it is of a kind, and one of the words where some are given."""
        if not self._tokens or self._tokens[0][0] != kind or (words and self._tokens[0][1] not in words):
            return None
        return self._tokens.pop(0)[1]

    def _fail(self, sentence: str) -> NoReturn:
        raise ValueError(f"--fail-if {self.text!r}: {sentence}")

# SPDX-License-Identifier: Apache-2.0
"""The policies of a deployment gate on the verdicts of a red team study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from phalanx.tools.redteam.policy import UNKNOWN, Policy
from phalanx.tools.redteam.verdict import Standing


@dataclass(frozen=True)
class Case:
    """A policy on an attack on a rule.

    Args:
        fails: None where a number that decides is not known.
        seen: the numbers that it looks at, in words.
    """

    attack: str
    rule: str
    fails: bool | None
    seen: str


@dataclass(frozen=True)
class Outcome:
    """A policy on all attacks on the rules that are judged."""

    policy: Policy
    cases: tuple[Case, ...]

    @property
    def fails(self) -> bool | None:
        """Whether it fails for some attack; None where it may."""
        answers = [case.fails for case in self.cases]
        return True if True in answers else None if None in answers or not answers else False

    @property
    def decisive(self) -> list[Case]:
        """The cases that make it fail, or that may."""
        return [case for case in self.cases if case.fails is self.fails and case.fails is not False]

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        cases = [vars(case) for case in self.decisive]
        return {"policy": self.policy.text, "fails": self.fails, "exit_code": self.policy.code, "cases": cases}


def gate(policies: Sequence[Policy], judged: Sequence[Standing]) -> list[Outcome]:
    """What becomes of each policy."""
    return [
        Outcome(
            policy,
            tuple(
                Case(cell.attack, standing.rule, policy.fails(numbers), policy.seen(numbers))
                for standing in judged
                for cell in standing.attacked
                for numbers in [standing.numbers(cell)]
            ),
        )
        for policy in policies
    ]


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """That of the first policy that fails; if none does, 3 where one may, else 0."""
    failed = [outcome.policy.code for outcome in outcomes if outcome.fails]
    return failed[0] if failed else UNKNOWN if any(outcome.fails is None for outcome in outcomes) else 0

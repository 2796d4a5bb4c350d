# SPDX-License-Identifier: Apache-2.0
"""The clients that a rule chooses: attackers, honest clients that hold edge cases, and the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from phalanx.tools.report.collect import Result
from phalanx.tools.report.selected import holders
from phalanx.training.phase import Run

ENOUGH = 5.0  # rows of theirs that would have been taken at the others' rate, below which nothing is said


@dataclass(frozen=True)
class Share:
    """How many of the rows that came were taken."""

    taken: int = 0
    came: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(self.taken + other.taken, self.came + other.came)

    @property
    def rate(self) -> float | None:
        """In [0, 1]; None where no row came."""
        return self.taken / self.came if self.came else None


@dataclass(frozen=True)
class Choices:
    """Rows that a rule which names its rows took.

    Args:
        holders: honest clients that hold edge cases, with their right labels.
        others: the other honest clients.
    """

    attackers: Share = Share()
    holders: Share = Share()
    others: Share = Share()

    def __add__(self, other: Choices) -> Choices:
        return Choices(self.attackers + other.attackers, self.holders + other.holders, self.others + other.others)

    def shut_out(self, below: float) -> bool | None:
        """Whether holders are taken at less than this share of the others' rate; None where too few rows came."""
        with_edge_cases, others = self.holders.rate, self.others.rate
        if with_edge_cases is None or others is None or others * self.holders.came < ENOUGH:
            return None
        return with_edge_cases < below * others


def choices(results: Iterable[Result], attacked: bool = True) -> Choices | None:
    """The rows taken in all rounds of some runs; None where the rule names none.

    Args:
        attacked: whether Byzantine workers do anything; else they are honest ones.
    """
    total = None
    for result in results:
        run = result.job
        assert isinstance(run, Run)
        unusual = holders(run)
        for line in result.metrics():
            if "chosen" not in line:
                continue
            came, chosen = set(line.get("clients", range(run.workers))), set(line["chosen"])
            bad = set(line["byzantine"]) if attacked else set()
            groups = (came & bad, (came - bad) & unusual, came - bad - unusual)
            of_seed = Choices(*(Share(len(group & chosen), len(group)) for group in groups))
            total = of_seed if total is None else total + of_seed
    return total

# SPDX-License-Identifier: Apache-2.0
"""The rules that chapter 7 of Wang's dissertation puts behind the vote, and what they stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from phalanx.aggregators.bulyan import Bulyan
from phalanx.aggregators.hierarchy import Hierarchy
from phalanx.aggregators.majority import Majority
from phalanx.aggregators.mean import Mean
from phalanx.aggregators.median import Median
from phalanx.aggregators.multi_krum import MultiKrum
from phalanx.core.aggregator import Aggregator
from phalanx.core.stage import TooFewRows


@dataclass(frozen=True)
class Pairing:
    """A rule over the votes.

    Args:
        rule: from the number of votes to the rule, with the largest f that so many votes allow.
    """

    name: str
    rule: Callable[[int], Aggregator]

    def tolerance(self, votes: int) -> int | None:
        """Wrong votes that the rule stands wherever they fall; None when the votes are too few for it."""
        rule = self.rule(votes)
        try:
            rule.rows_out(votes)
        except TooFewRows:
            return None
        return rule.tolerates(votes)


PAIRINGS = (
    Pairing("mean", lambda votes: Mean()),
    Pairing("mean in 3 groups, median", lambda votes: Hierarchy(Mean(), Median(), groups=3)),
    Pairing("mean in 5 groups, median", lambda votes: Hierarchy(Mean(), Median(), groups=5)),
    Pairing(
        "Multi-Krum in 2 groups, mean",
        lambda votes: Hierarchy(MultiKrum(f=max(0, (votes // 2 - 3) // 2)), Mean(), groups=2),
    ),
    Pairing("Bulyan, mean", lambda votes: Hierarchy(Bulyan(f=max(0, (votes - 3) // 4)), Mean(), groups=1)),
    # the chapter names no number of groups
    Pairing("sign majority in 3 groups, majority", lambda votes: Hierarchy(Majority(), Majority(), groups=3)),
)

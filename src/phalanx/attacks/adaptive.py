# SPDX-License-Identifier: Apache-2.0
"""An attack on a known rule: the attacker's row at the length that moves the rule's result furthest."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.attack import Attack, View
from phalanx.core.expression import method, require
from phalanx.core.layout import Layout
from phalanx.core.precision import accumulation_dtype
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, Stage, TooFewRows
from phalanx.core.trees import State

STEPS = range(-6, 5)  # powers of two by which a row is made shorter or longer


@method("adaptive", "attack")
class Adaptive(Attack):
    """Byzantine workers send the point towards their target that moves the result of the known rule furthest.

    Let m be the mean of the honest rows and v the mean of the rows that the Byzantine workers computed. The adversary
    tries s v and m + s (v - m) for s = 2^-6 ... 2^4, applies the rule to each candidate together with the honest rows,
    and sends the candidate whose result lies furthest along v - m; all its workers send the same row. So it stays
    within a cluster, a norm bound or the range of other rows where that helps. A rule with memory is applied as in its
    first round, and all rows have equal weights.

    Shapes: (k, d) -> (k, d).
    Args:
        rule: the stages behind the wire of the attacked scheme, from received rows to one row.
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, section IV, attacks on a known rule.
        Differs: v is the row of a backdoor, not a perturbation of the mean; the search is for the furthest result, not
        for the greatest length that the rule accepts.
    """

    omniscient: ClassVar[bool] = True
    directions_only: ClassVar[bool] = True
    runs_on: ClassVar[Scope] = "vector"

    rule: Stage

    def validate(self) -> None:
        crosses = self.rule.num_wires
        require(crosses == 0, f"adaptive takes the rule behind the wire, and {self.rule!r} crosses it")

    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        assert view is not None
        byzantine = view.byzantine.to(view.rows.device)
        if not bool(byzantine.any()) or bool(byzantine.all()):
            return stack.rows, state
        all_rows = view.rows.to(accumulation_dtype(view.rows.dtype))
        mean, target = all_rows[~byzantine].mean(dim=0), all_rows[byzantine].mean(dim=0)
        direction = target - mean
        best, furthest = target, -float("inf")
        for step in STEPS:
            for candidate in (2.0**step * target, mean + 2.0**step * direction):
                reached = self._apply_rule(torch.where(byzantine[:, None], candidate, all_rows), view.workers, round)
                if reached is not None and (distance := float(reached.double() @ direction.double())) > furthest:
                    best, furthest = candidate, distance
        return best, state

    def _apply_rule(self, rows: Tensor, workers: tuple[int, ...], round: Round) -> Tensor | None:
        """The rule's result for these rows; None where they are too few."""
        weights = torch.ones(len(rows), dtype=torch.float64)
        layout = Layout.flat(rows.shape[1], rows.dtype)
        stack = Stack(rows, layout, tuple((w,) for w in workers), weights, received=True)
        try:
            result, _ = self.rule(stack, None, Round(round.index, round.seed))
        except TooFewRows:
            return None
        require(len(result.rows) == 1, f"adaptive needs a rule that gives one row, got {self.rule!r}")
        return result.rows[0]

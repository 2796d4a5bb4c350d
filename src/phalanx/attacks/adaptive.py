# SPDX-License-Identifier: Apache-2.0
"""An attack on a known rule: the attacker's own direction, in the length that takes the rule's result furthest."""

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
    """Byzantine rows at the place on the way to their own where the rule, which the adversary knows, is moved furthest.

    With m the mean of the honest rows and v that of the Byzantine ones as they were computed, the adversary tries s v
    and m + s (v - m) for s = 2^-6 ... 2^4, lets the rule combine each with the honest rows, and sends that whose result
    lies furthest along v - m; all its workers send the same. So it stays within a cluster, a norm or the range of the
    others where that pays. Rules that remember are asked as in their first round, and every row weighs the same.

    Shapes: (k, d) -> (k, d).
    Args:
        rule: behind the wire of the attacked scheme, from received rows to one row.
    Source: Shejwalkar and Houmansadr, Manipulating the Byzantine, NDSS 2021, section IV, attacks on a known rule.
        Differs: v is the row of a backdoor and not a disturbance of the mean, and the furthest result is sought, not
        the greatest length that is accepted.
    """

    omniscient: ClassVar[bool] = True
    directions_only: ClassVar[bool] = True

    rule: Stage

    @property
    def scope(self) -> Scope:
        return "vector"

    def validate(self) -> None:
        crosses = self.rule.num_wires
        require(crosses == 0, f"adaptive takes the rule behind the wire, and {self.rule!r} crosses it")

    def forge(
        self, own: Tensor, workers: tuple[int, ...], view: View | None, state: State, round: Round
    ) -> tuple[Tensor, State]:
        assert view is not None
        bad = view.byzantine.to(view.rows.device)
        if not bool(bad.any()) or bool(bad.all()):
            return own, state
        rows = view.rows.to(accumulation_dtype(view.rows.dtype))
        mean, mine = rows[~bad].mean(dim=0), rows[bad].mean(dim=0)
        way = mine - mean
        best, far = mine, -float("inf")
        for step in STEPS:
            for tried in (2.0**step * mine, mean + 2.0**step * way):
                reached = self._reached(torch.where(bad[:, None], tried, rows), view.workers, round)
                if reached is not None and (along := float(reached.double() @ way.double())) > far:
                    best, far = tried, along
        return best, state

    def _reached(self, rows: Tensor, workers: tuple[int, ...], round: Round) -> Tensor | None:
        """The rule's result of these rows; None where it has none."""
        weights = torch.ones(len(rows), dtype=torch.float64)
        layout = Layout.flat(rows.shape[1], rows.dtype)
        stack = Stack(rows, layout, tuple((w,) for w in workers), weights, received=True)
        try:
            result, _ = self.rule(stack, None, Round(round.index, round.seed))
        except TooFewRows:
            return None
        require(len(result.rows) == 1, f"adaptive needs a rule that gives one row, got {self.rule!r}")
        return result.rows[0]

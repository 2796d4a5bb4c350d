# SPDX-License-Identifier: Apache-2.0
"""A rule of two parts: one rule for directions, another for installed values."""

from __future__ import annotations

import torch

from phalanx.aggregators.mean import Mean
from phalanx.core.aggregator import Aggregator
from phalanx.core.allocation import Allocation
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Chain, Scope, Stage, join_notes, widest
from phalanx.core.trees import State


@method("split_by_part", "aggregator")
class SplitByPart(Aggregator):
    """Combines directions by one rule and installed values, such as BatchNorm statistics, by another.

    A system that protects gradients and averages statistics is `split_by_part(krum(f=3), mean())`. With a robust second
    rule each part is judged on its own scale: a rule that compares whole rows hardly notices a forgery in the part that
    varies less among honest workers, which is mostly the statistics.

    Shapes: (n, d) -> (1, d).
    Args:
        directions: a rule, or a chain of rules, that returns one row.
        installed: another such rule, which sees the installed values only.
    Raises:
        ValueError: a rule returns several rows, or raises one itself.
    """

    directions: Stage
    installed: Stage = Mean()

    @property
    def scope(self) -> Scope:
        return widest((self.directions.scope, self.installed.scope))

    @property
    def on_columns(self) -> bool:
        return self.directions.on_columns and self.installed.on_columns

    def validate(self) -> None:
        for stage in (self.directions, self.installed):
            require(stage.num_wires == 0, f"split_by_part stands behind the wire, and {stage!r} crosses one")

    def tolerates(self, n: int) -> int:
        return min(self.directions.tolerates(n), self.installed.tolerates(n))

    def rows_out(self, n: int) -> int:
        for stage in (self.directions, self.installed):
            rows = stage.rows_out(n)
            require(
                rows == 1,
                f"{stage!r} gives {rows} rows where split_by_part needs one; end it with mean() or another rule",
            )
        return 1

    def assign(self, n: int, seed: int = 0, index: int = 0) -> Allocation | None:
        return Chain((self.directions, self.installed)).assign(n, seed, index)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        state = dict(state or {})
        parts = {
            "directions": (self.directions, stack.directions),
            "installed": (self.installed, stack.installed),
        }
        results: list[Stack] = []
        memory: State = {}
        for name, (rule, part) in parts.items():
            result, next_state = rule(part, state.get(name), round.child(name))
            results.append(result)
            if next_state:
                memory[name] = next_state
        return join_notes(stack.one(torch.cat([result.rows[0] for result in results])), results), memory

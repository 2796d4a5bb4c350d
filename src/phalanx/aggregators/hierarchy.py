# SPDX-License-Identifier: Apache-2.0
"""A rule of two levels: one rule inside random groups, another across the groups."""

from __future__ import annotations

from dataclasses import replace

import torch

from phalanx.aggregators.kernels.shuffle import even_groups, present, shuffled
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Scope, Stage, TooFewRows, join_notes, widest
from phalanx.core.trees import State


@method("hierarchy", "aggregator")
class Hierarchy(Aggregator):
    """Shuffles the rows into groups, applies `inner` in each group and `outer` to the results.

    An erased row keeps its place in the shuffle and counts towards the f of its own group; a group with too few rows
    for `inner` counts towards the f of `outer`.

    Shapes: (n, d) -> (1, d), n >= groups.
    Args:
        inner: a rule that gives one row for a group, such as mean().
        outer: a rule over the groups, such as median().
        groups: number of groups, >= 1, whose sizes differ by one at most; with a robust outer rule, more groups
            tolerate more Byzantine rows and are noisier.
    Raises:
        ValueError: n < groups, a group is too small for `inner`, or the groups are too few for `outer`.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205, Algorithm 2.
    Differs: groups need not divide n, and a mean weights them by their examples.
    """

    inner: Stage
    outer: Stage
    groups: int

    @property
    def scope(self) -> Scope:
        return widest((self.inner.scope, self.outer.scope))

    @property
    def on_columns(self) -> bool:
        return self.inner.on_columns and self.outer.on_columns

    def validate(self) -> None:
        require(self.groups >= 1, f"hierarchy needs groups >= 1, got groups={self.groups}")
        for stage in (self.inner, self.outer):
            require(stage.num_wires == 0, f"hierarchy stands behind the wire, and {stage!r} crosses one")

    def tolerates(self, n: int) -> int:
        inner, outer = self.inner.tolerates(n // self.groups), self.outer.tolerates(self.groups)
        return (inner + 1) * (outer + 1) - 1

    def rows_out(self, n: int) -> int:
        if n < self.groups:
            raise TooFewRows(f"hierarchy needs a row for each group, got n={n}, groups={self.groups}")
        inner = self.inner.rows_out(n // self.groups)
        require(inner == 1, f"{self.inner!r} gives {inner} rows where hierarchy needs one for each group")
        return self.outer.rows_out(self.groups)

    def merges(self, n: int) -> int:
        return self.rows_out(n)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        self.rows_out(len(stack.rows) + stack.erased)
        state = dict(state or {})
        positions = shuffled(stack, round)
        results: list[Stack] = []
        memory: State = {}
        for g, span in enumerate(even_groups(len(positions), self.groups)):
            members = present(positions[span.start : span.stop])
            group = replace(stack.pick(members), erased=len(span) - len(members))
            try:
                result, next_state = self.inner(group, state.get(f"inner/{g}"), round.child(0).child(g))
            except TooFewRows:
                continue
            results.append(result)
            if next_state:
                memory[f"inner/{g}"] = next_state
        if not results:
            raise TooFewRows(
                f"hierarchy: no group has rows enough for {self.inner!r}, got n={len(stack.rows)}", stack.notes
            )
        group_results = replace(
            stack,
            rows=torch.cat([r.rows for r in results]),
            sources=tuple(s for r in results for s in r.sources),
            weights=torch.cat([r.weights for r in results]),
            erased=self.groups - len(results),
            units=None,
        )
        merged, next_state = self.outer(join_notes(group_results, results), state.get("outer"), round.child(1))
        if next_state:
            memory["outer"] = next_state
        return merged, memory

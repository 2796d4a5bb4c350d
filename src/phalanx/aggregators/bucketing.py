# SPDX-License-Identifier: Apache-2.0
"""A preparation for a rule: rows are averaged in random buckets."""

from __future__ import annotations

import torch

from phalanx.aggregators.kernels.columns import mix
from phalanx.aggregators.kernels.shuffle import present, shuffled
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.trees import State


@method("bucketing", "aggregator")
class Bucketing(Aggregator):
    """Averages the rows in random buckets of `size` rows each, drawn anew in every round; means are weighted.

    f Byzantine rows spoil at most f buckets, so the next rule needs the same f as without buckets, among fewer rows.

    Shapes: (n, d) -> (ceil(n / size), d).
    Args:
        size: rows in a bucket, >= 1; a larger one makes honest rows more alike and tolerates fewer Byzantine rows. The
            last bucket may hold fewer.
    Source: Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, 2022,
        arXiv:2006.09365, Algorithm 1. As published where weights are equal.
    """

    size: int

    def validate(self) -> None:
        require(self.size >= 1, f"bucketing needs size >= 1, got size={self.size}")

    def merges(self, n: int) -> int:
        return -(-n // self.size)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        positions = present(shuffled(stack, round))
        buckets = [positions[start : start + self.size] for start in range(0, len(positions), self.size)]
        share = torch.zeros(len(buckets), len(positions), dtype=torch.float64)
        for bucket, members in enumerate(buckets):
            share[bucket, members] = stack.weights[members] / stack.weights[members].sum()
        return stack.merged(mix(share, stack.rows), buckets), {}

# SPDX-License-Identifier: Apache-2.0
"""Rows averaged in random buckets before a rule."""

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
    """The weighted means of `size` rows each, drawn at random anew in every round.

    f Byzantine rows spoil at most f of the fewer rows that come out, so the rule behind needs as large an f as without.

    Shapes: (n, d) -> (ceil(n / size), d).
    Args:
        size: rows in a bucket, >= 1; larger makes honest rows more alike and tolerates fewer Byzantine ones. The last
            bucket may hold fewer.
    Source: Karimireddy et al., Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing, 2022,
        arXiv:2006.09365, Algorithm 1. As published where weights are equal.
    """

    size: int

    def validate(self) -> None:
        require(self.size >= 1, f"bucketing needs size >= 1, got size={self.size}")

    def merges(self, n: int) -> int:
        return -(-n // self.size)

    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        places = present(shuffled(stack, round))
        buckets = [places[start : start + self.size] for start in range(0, len(places), self.size)]
        share = torch.zeros(len(buckets), len(places), dtype=torch.float64)
        for bucket, members in enumerate(buckets):
            share[bucket, members] = stack.weights[members] / stack.weights[members].sum()
        return stack.merged(mix(share, stack.rows), buckets), {}

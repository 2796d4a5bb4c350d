# SPDX-License-Identifier: Apache-2.0
"""Vote, then aggregate in a hierarchy: a whole scheme."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from phalanx.aggregators.hierarchy import Hierarchy
from phalanx.codecs.dense import Dense
from phalanx.coding.placement import Placement, RandomOrder
from phalanx.coding.vote import Vote
from phalanx.core.codec import Codec
from phalanx.core.expression import require
from phalanx.core.registry import register
from phalanx.core.stage import Chain, Stage, chain


def detox(
    r: int,
    inner: Stage,
    outer: Stage,
    groups: int,
    q: int | None = None,
    codec: Codec | None = None,
    placement: Placement | None = None,
) -> Chain:
    """Votes of groups of r, then a rule in groups of votes and one across: chain(vote(codec, r), hierarchy(...)).

    The pairings of the dissertation, 45 workers and r = 3: mean() and median() in 5 groups, or 3 under ALIE;
    multi_krum(f=2) in 2 groups and mean(); bulyan(f=2) in 1 group and mean(); majority() and majority() over sign().

    Shapes: (k, d) -> (1, d).
    Args:
        r: workers in a group of equal work, odd.
        inner: the rule in each group of votes.
        outer: the rule across the groups.
        groups: of votes, >= 1.
        q: Byzantine workers. The rules' f becomes q // ((r + 1) // 2), the most votes that so many can win; None leaves
            it as it is.
        codec: how a row becomes bytes; dense() when None.
        placement: which workers share a group of equal work; random_order() when None.
    Raises:
        ValueError: a number out of range.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205, Algorithm 1. Differs: the vote is on digests; the groups of votes are drawn anew each round.

    >>> import phalanx as px
    >>> px.coding.detox(3, px.aggregators.multi_krum(f=0), px.aggregators.mean(), groups=2, q=5)
    chain(vote(dense(), r=3), hierarchy(multi_krum(f=2), mean(), groups=2))
    """
    require(q is None or q >= 0, f"detox needs q >= 0 Byzantine workers, got q={q}")
    if q is not None:
        votes = q // ((r + 1) // 2)
        inner, outer = _standing(inner, votes), _standing(outer, votes)
    return chain(Vote(codec or Dense(), r, placement=placement or RandomOrder()), Hierarchy(inner, outer, groups))


def _standing(stage: Any, f: int) -> Stage:
    return replace(stage, f=f) if "f" in {field.name for field in fields(stage)} else stage


register("detox", "stage", detox)

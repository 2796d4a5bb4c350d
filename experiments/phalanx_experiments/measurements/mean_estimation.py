# SPDX-License-Identifier: Apache-2.0
"""Figure 7.6: the error of robust means with and without a vote before them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from phalanx.aggregators.geometric_median import GeometricMedian
from phalanx.aggregators.median import Median
from phalanx.core.aggregator import Aggregator
from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.tools.runner.measurement import Measurement

RULES: dict[str, Aggregator] = {"geometric_median": GeometricMedian(), "median": Median()}

_ROWS = 4096  # looked at together, as they fit a cache


@method("mean_estimation", "measurement")
class MeanEstimation(Measurement):
    """The distance from the true mean, zero, of the geometric and the coordinate-wise median, plain and with DETOX.

    There is one sample of N(0, I_d) for each node. Plain, an honest node sends its own. With DETOX, r nodes share their
    r samples and send the mean; a vote among them decides, the votes are averaged in `groups` groups, and the rule
    takes the means. Byzantine nodes, the same in both, send the vector of equal entries whose norm is `norm`.

    Args:
        nodes: p, a multiple of r.
        byzantine: of them, placed at random for each d; 0 <= byzantine < nodes / 2. The default is floor(e^r / 3).
        r: nodes that compute the same, odd.
        dims: each d, >= 1.
        groups: k, vote groups, 1 .. nodes / r. The default is 128 ln(1 / 0.1) as in theorem 7.3, rounded up.
        norm: of what Byzantine nodes send, >= 0.
    Source: Rajput et al., DETOX: A Redundancy-based Framework for Faster and More Robust Gradient Aggregation, 2019,
        arXiv:1907.12205 (Section 7.6.9 and Figure 7.6 of Wang's dissertation).
    Differs: the text says "20 samples" in all, with which no error could be far below sqrt(d / 20); here a batch has as
        many samples as nodes, as in the chapter's theory. It names no k. Its q / p = 0.09 is more than theorem 7.3
        allows.
    """

    nodes: int = 220_000
    byzantine: int = 19_958
    r: int = 11
    dims: tuple[int, ...] = (20, 30, 40, 50, 60, 70, 80, 90, 100)
    groups: int = 295
    norm: float = 100.0
    seed: int = 0

    def validate(self) -> None:
        nodes, r = self.nodes, self.r
        require(r >= 1 and r % 2 == 1, f"mean_estimation needs an odd r >= 1, got r={r}")
        require(nodes >= r and nodes % r == 0, f"mean_estimation needs nodes in groups of r={r}, got nodes={nodes}")
        require(
            0 <= self.byzantine < nodes / 2,
            f"mean_estimation needs fewer than half of {nodes} nodes Byzantine, got byzantine={self.byzantine}",
        )
        require(bool(self.dims) and min(self.dims) >= 1, f"mean_estimation needs dims >= 1, got dims={self.dims}")
        require(
            1 <= self.groups <= nodes // r,
            f"mean_estimation has {nodes // r} votes for 1 to as many groups, got groups={self.groups}",
        )
        require(self.norm >= 0, f"mean_estimation needs norm >= 0, got norm={self.norm}")

    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        plain, detox = ({name: [] for name in RULES} for _ in range(2))
        lost = []
        for d in self.dims:
            on_progress(f"d={d}")
            samples, byzantine, bad = self.draw(d)
            # all Byzantine rows are one row with a weight
            rows = torch.cat([samples[~byzantine], bad])
            weights = torch.ones(len(rows))
            weights[-1] = self.byzantine
            middle = weighted_median(rows, weights)
            plain["median"].append(_norm(middle))
            plain["geometric_median"].append(_norm(weighted_geometric_median(rows, weights, middle)))
            del rows
            votes, outvoted = self.votes(samples, byzantine, bad)
            lost.append(outvoted)
            # the nodes are placed at random, so neighbouring votes are random groups
            means = torch.stack([part.mean(dim=0) for part in votes.tensor_split(self.groups)])
            for name, rule in RULES.items():
                detox[name].append(_norm(rule.aggregate(means)))
        return {"dims": list(self.dims), "plain": plain, "detox": detox, "lost_votes": lost}

    def draw(self, d: int) -> tuple[Tensor, Tensor, Tensor]:
        """The samples (nodes, d), whether each node is Byzantine (nodes,), and what those send (1, d)."""
        rng = make_generator("mean_estimation", self.seed, d)
        samples = torch.randn(self.nodes, d, generator=rng)
        byzantine = torch.zeros(self.nodes, dtype=torch.bool)
        byzantine[torch.randperm(self.nodes, generator=rng)[: self.byzantine]] = True
        return samples, byzantine, torch.full((1, d), self.norm / math.sqrt(d))

    def votes(self, samples: Tensor, byzantine: Tensor, bad: Tensor) -> tuple[Tensor, int]:
        """The vote of each group (nodes / r, d), and how many Byzantine nodes have won."""
        votes = samples.unflatten(0, (-1, self.r)).mean(dim=1)
        lost = 2 * byzantine.unflatten(0, (-1, self.r)).sum(dim=1) > self.r
        votes[lost] = bad
        return votes, int(lost.sum())


def weighted_median(rows: Tensor, weights: Tensor) -> Tensor:
    """The value of each column with at most half of the weight on either side; the mean of both if there are two.

    Shapes: (n, d), (n,) -> (d,).
    """
    middle = rows.new_empty(rows.shape[1])
    half = weights.double().sum() / 2
    for j in range(rows.shape[1]):
        column = rows[:, j].contiguous()
        # numpy sorts four times as fast
        order = torch.from_numpy(column.numpy().argsort())
        below = weights[order].double().cumsum(0)
        low, high = (order[torch.searchsorted(below, half, right=right)] for right in (False, True))
        middle[j] = (column[low] + column[high]) / 2
    return middle


def weighted_geometric_median(rows: Tensor, weights: Tensor, start: Tensor, tol: float = 1e-6) -> Tensor:
    """The point with the least weighted sum of distances, by Weiszfeld steps on the rows themselves.

    For many rows of few entries, where `geometric_median()` would need all inner products. Steps end when the sum is
    within a share `tol` of the least, by the bound that it uses.

    Shapes: (n, d), (n,), (d,) -> (d,).
    """
    point, share = start, weights / weights.sum()
    for _ in range(1000):
        apart = torch.cat([torch.linalg.vector_norm(part - point, dim=1) for part in rows.split(_ROWS)])
        pull = share / apart.clamp_min(1e-12)
        following = (pull @ rows) / pull.sum()
        slope = pull.sum() * torch.linalg.vector_norm(following - point)
        point = following
        if float(2 * slope) <= tol:
            break
    return point


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x.double()))

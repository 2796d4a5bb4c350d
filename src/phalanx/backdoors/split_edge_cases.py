# SPDX-License-Identifier: Apache-2.0
"""Edge-case examples of which honest clients hold some, with their right labels."""

from __future__ import annotations

from dataclasses import replace

import torch

from phalanx.backdoors.edges import EdgeCases, EdgeSet
from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.dataset import Dataset


@method("split_edge_cases", "edge_cases")
class SplitEdgeCases(EdgeCases):
    """Another set's training examples, a share of them with the attacker and the rest with honest clients.

    What honest clients hold has its right labels; `joined` appends it to the data and `dealt` gives it to units. The
    parts are drawn by origin: the rotations of one photograph stay together. The attacker's examples, and the first of
    the honest ones, do not depend on the ratio.

    Args:
        ratio: share of the examples handed out that the attacker holds, in (0, 1]: p / 100 of figure 8.3.
        attacker: origins that the attacker holds, >= 1. A tenth of all, rounded down, when None, so that the ratios 1,
            0.5 and 0.1 of the figure are all there.
        seed: of who gets what.
    Raises:
        ValueError: there are too few origins, or the other set shares its examples already.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084, figure 8.3 of the dissertation. Differs: there 25
        photographs of planes are the attacker's and 0, 25 or 175 the honest clients', the last of which is 12.5 %.
    """

    edges: EdgeCases
    ratio: float = 0.5
    attacker: int | None = None
    seed: int = 0

    def validate(self) -> None:
        require(0 < self.ratio <= 1, f"shared needs a ratio in (0, 1], got ratio={self.ratio}")
        ok = self.attacker is None or self.attacker >= 1
        require(ok, f"shared needs attacker >= 1 origin, got attacker={self.attacker}")

    def read(self, data: Dataset) -> EdgeSet:
        edges = self.edges.load(data)
        require(edges.held is None, f"shared: honest clients hold some of {self.edges!r} already")
        origins = torch.arange(len(edges)) if edges.origins is None else edges.origins
        known = origins.unique()
        total = len(known)
        of_attacker = max(1, total // 10) if self.attacker is None else self.attacker
        theirs = round(of_attacker * (1 - self.ratio) / self.ratio)
        sentence = (
            f"{self!r} gives the attacker {of_attacker} origins and honest clients {theirs}, and there are {total}"
        )
        require(of_attacker + theirs <= total, f"{sentence}; raise ratio or lower attacker")
        order = known[torch.randperm(total, generator=make_generator("shared", self.seed))]
        attack, honest = (
            torch.isin(origins, part) for part in (order[:of_attacker], order[of_attacker : of_attacker + theirs])
        )
        held = (edges.train_x[honest], edges.true_y[honest]) if theirs else None
        return replace(edges.pick(attack), held=held)

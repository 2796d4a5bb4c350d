# SPDX-License-Identifier: Apache-2.0
"""The data of honest clients beside an edge-case attack."""

from __future__ import annotations

from phalanx.backdoors.edges import EdgeCases
from phalanx.backdoors.rare_styles import RareStyles
from phalanx.core.expression import method
from phalanx.data.dataset import Data, Dataset
from phalanx.data.digits import Digits


@method("with_edge_cases", "data")
class WithEdgeCases(Data):
    """Another data set as honest clients have it: what edge cases were made of is gone, what they hold is added.

    The added examples come last and have their right labels; the partition `dealt` gives them to a few units. The test
    part stays. The attacker's examples are not among them.

    Args:
        edges: a set of which honest clients hold some, as `split_edge_cases(southwest())`; others add nothing.
    """

    data: Data = Digits()
    edges: EdgeCases = RareStyles()

    def read(self) -> Dataset:
        data = self.data.load()
        return self.edges.load(data).honest(data)

    def location(self) -> str:
        return self.data.location()

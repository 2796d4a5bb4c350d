# SPDX-License-Identifier: Apache-2.0
"""A partition that gives the examples added to a data set to a few units."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from phalanx.core.expression import method, require
from phalanx.core.round import make_generator
from phalanx.data.examples import Examples
from phalanx.data.partition import Partition, check_units

ADDED = -1  # neither a label nor an owner


@method("assign_added", "partition")
class AssignAdded(Partition):
    """Another partition's parts, and the examples that were added to the data in equal pieces for a few units.

    The pieces differ by one example at most, the longer ones first. Without added examples it is the other partition.

    Args:
        inner: how the other examples are shared out.
        clients: units that get a piece, >= 1; no more than there are pieces.
        drawn: units that the seed draws; else the first ones.
        first: units before this one get none, such as an attacker's, >= 0.
    Raises:
        ValueError: there are fewer units or added examples than clients.
    Source: Wang et al., Attack of the Tails, 2020, arXiv:2007.05084: at p = 50 and 10 of figure 8.3 of the dissertation
        5 clients hold 100 images of planes and 19 hold 700; in figure 8.5 the first 10 clients hold them.
    """

    exhaustive: ClassVar[bool] = False

    inner: Partition
    clients: int = 5
    drawn: bool = False
    first: int = 0

    def validate(self) -> None:
        require(self.clients >= 1, f"dealt needs clients >= 1, got clients={self.clients}")
        require(self.first >= 0, f"dealt needs first >= 0, got first={self.first}")

    def values(self, data: Examples) -> Tensor:
        values = self.inner.values(data).clone()
        values[len(values) - data.added :] = ADDED
        return values

    def split(self, values: Tensor, units: int, seed: int) -> tuple[Tensor, ...]:
        check_units(self, len(values), units)
        added = (values.reshape(len(values), -1) == ADDED).all(dim=1)
        places = (~added).nonzero().flatten()
        parts = [places[part] for part in self.inner.split(values[places], units, seed)]
        extra = added.nonzero().flatten()
        if len(extra):
            able = units - self.first
            have = f"{len(extra)} added examples and {able} units"
            ok = self.clients <= min(able, len(extra))
            require(ok, f"dealt gives pieces to {self.clients} units, and there are {have}; lower clients")
            order = torch.randperm(able, generator=make_generator("dealt", seed)) if self.drawn else torch.arange(able)
            pieces = extra.tensor_split(self.clients)
            for unit, piece in zip((order + self.first).tolist(), pieces, strict=False):
                parts[unit] = torch.cat([parts[unit], piece])
        return tuple(parts)

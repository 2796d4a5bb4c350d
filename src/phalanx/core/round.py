# SPDX-License-Identifier: Apache-2.0
"""All that a stage may know besides its rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import torch

from phalanx.core.world import LocalWorld, World


def make_generator(*key: object) -> torch.Generator:
    """A CPU generator of its own for every key of numbers and strings; the same key gives the same stream."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


@dataclass(frozen=True)
class Round:
    """One exchange: its number, seed, threat and world.

    Args:
        index: number of the round, from 0.
        seed: the run's seed.
        byzantine: workers that the adversary controls in this round; known to attacks and to the results only.
        path: position of the running stage in the nested chain, so that two stages never share random numbers.
        absent: workers whose messages do not arrive in this round, as a drill; those of others may fail to as well.
        begins: whether it is the scheme's first round.
    """

    index: int = 0
    seed: int = 0
    byzantine: frozenset[int] = frozenset()
    world: World = field(default_factory=lambda: LocalWorld(1))
    path: tuple[int | str, ...] = ()
    absent: frozenset[int] = frozenset()
    begins: bool = False

    def rng(self, worker: int | None = None, group: int | None = None) -> torch.Generator:
        """The stream of a worker, the shared stream of a group, or the one that is the same everywhere."""
        return make_generator("round", self.seed, self.index, self.path, worker, group)

    def inside(self, position: int | str) -> Round:
        """The round as the stage at a position inside the present one sees it."""
        return replace(self, path=(*self.path, position))

# SPDX-License-Identifier: Apache-2.0
"""The round in which a stage runs: everything that a stage may use besides its rows and its state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import cast

import torch

from phalanx.core.payload import Payload
from phalanx.core.world import Collective, LocalCollective, World

Rng = Callable[[], torch.Generator]  # makes the random generator of a worker


def make_generator(*key: object) -> torch.Generator:
    """A new CPU generator, seeded by a key of numbers and strings; the same key gives the same random numbers.

    Raises:
        ValueError: a part of the key is neither, such as a generator, whose name is another one in every process.
    """
    digest = hashlib.blake2b(repr(_plain(key)).encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def _plain(part: object) -> object:
    """A part of a key, with whole numbers of NumPy as Python's."""
    if isinstance(part, tuple):
        return tuple(map(_plain, part))
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Integral):
        return int(part)
    raise ValueError(
        f"a seed is made of numbers and strings, which are the same in every process, got a {type(part).__name__}; "
        "give a whole number such as seed=0"
    )


@dataclass(frozen=True)
class Round:
    """One round of a scheme, as its stages see it.

    Args:
        index: number of the round, from 0.
        seed: the run's seed.
        byzantine: workers that the adversary controls in this round; only attacks and the results know them.
        world: brings the workers' payloads; a collective, or the transport of a server.
        path: position of the running stage in the nested chain, so that two stages never use the same random numbers.
        absent: workers whose messages an injected fault drops in this round; other messages may get lost as well.
        is_first: whether it is the scheme's first round.
        announced: what the wire stage announced in the last round that it decoded; empty before the first one.
    """

    index: int = 0
    seed: int = 0
    byzantine: frozenset[int] = frozenset()
    world: World = field(default_factory=lambda: LocalCollective(1))
    path: tuple[int | str, ...] = ()
    absent: frozenset[int] = frozenset()
    is_first: bool = False
    announced: Payload = field(default_factory=dict, repr=False)

    @property
    def collective(self) -> Collective:
        """The world, for stages that need an all-reduce or an all-gather; `check_server` refuses them at a server."""
        return cast("Collective", self.world)

    def rng(self, worker: int | None = None, group: int | None = None) -> torch.Generator:
        """A generator for this round: of one worker, of one group, or, without either, the same in all processes."""
        return make_generator("round", self.seed, self.index, self.path, worker, group)

    def child(self, position: int | str) -> Round:
        """The same round for a stage at a position inside the present stage."""
        return replace(self, path=(*self.path, position))

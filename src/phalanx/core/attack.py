# SPDX-License-Identifier: Apache-2.0
"""Byzantine workers: who they are, and the stage that rewrites their rows.

The place of the attack in the chain is the threat model: before the wire stage the adversary speaks the wire format,
after it (or as `gather(..., forge=...)`) it forges what arrives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from phalanx.clock import FORGING, Clock
from phalanx.expression import Expression, method, require
from phalanx.round import Round, stream
from phalanx.stack import Stack
from phalanx.stage import Stage, State

Part = Literal["row", "directions", "installed"]  # of a row


@dataclass(frozen=True)
class View:
    """What an omniscient adversary sees: the rows that all workers computed, before corruption.

    Args:
        rows: (n, d), by worker.
        byzantine: (n,) True where the adversary controls the worker.
        workers: the first worker behind each row.
    """

    rows: Tensor
    byzantine: Tensor
    workers: tuple[int, ...]

    @property
    def honest(self) -> Tensor:
        """(n - f, d); all rows when every worker is Byzantine."""
        if bool(self.byzantine.all()):
            return self.rows
        return self.rows[~self.byzantine.to(self.rows.device)]


class Attack(Stage):
    """A stage that rewrites the rows of Byzantine workers and leaves the others alone.

    Class attributes `omniscient`: the attack looks at all workers' rows; `directions_only`: values that are installed,
    such as BatchNorm statistics, stay as they are.

    How long it takes, looking included, is noted as `attack_s`, and is no part of what a round costs those it harms.
    """

    omniscient: ClassVar[bool] = False
    directions_only: ClassVar[bool] = False

    @property
    def asks_all(self) -> bool:
        """Whether it has to know something of all workers, which a worker of a server's job does not."""
        return self.omniscient

    @property
    def part(self) -> Part:
        """What of a row it rewrites."""
        return "directions" if self.directions_only else "row"

    @abstractmethod
    def forge(
        self, own: Tensor, workers: tuple[int, ...], view: View | None, state: State, round: Round
    ) -> tuple[Tensor, State]:
        """What the adversary sends for its rows. Shapes: (q, d) -> (q, d) or (d,).

        `view` is there exactly for an omniscient attack; q may be 0 in a process that plays honest workers only.
        """

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        state = dict(state or {})
        if not round.byzantine:
            return stack, state
        clock = Clock()
        mine = [i for i, s in enumerate(stack.sources) if s and set(s) <= round.byzantine]
        view = self.look(stack, round)
        workers = tuple(stack.sources[i][0] for i in mine)
        # pieces of one row draw from different streams
        piece = round.inside(" ".join(stack.layout.names))
        forged, state = self.forge(stack.rows[mine], workers, view, state, piece)
        if mine:
            rows, cut = stack.rows.clone(), stack.layout.stepped
            aimed = {"row": slice(None), "directions": slice(cut), "installed": slice(cut, None)}[self.part]
            rows[mine, aimed] = forged.to(rows.dtype).expand(len(mine), -1)[:, aimed]
            stack = stack.with_rows(rows)
        clock.lap(FORGING)
        return stack.note(clock.notes), state

    def look(self, stack: Stack, round: Round) -> View | None:
        """All workers' rows, for an attack that is omniscient."""
        if not self.omniscient:
            return None
        if stack.received:
            bad = [set(s) <= round.byzantine for s in stack.sources]
            return View(stack.rows, torch.tensor(bad, dtype=torch.bool), tuple(s[0] for s in stack.sources))
        rows = round.world.peek(stack.rows)
        workers = round.world.workers
        return View(rows, torch.tensor([i in round.byzantine for i in workers], dtype=torch.bool), workers)


class Threat(Expression, ABC):
    """Which workers are Byzantine in which round."""

    @abstractmethod
    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        """The Byzantine workers of round `index` among n.

        Raises:
            ValueError: more or other workers than there are.
        """


@method("nobody", "threat")
class Nobody(Threat):
    """No worker is Byzantine."""

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        return frozenset()


@method("fixed", "threat")
class Fixed(Threat):
    """The named workers, in every round."""

    workers: tuple[int, ...]

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        out = [w for w in self.workers if not 0 <= w < n]
        require(not out, f"fixed names workers {out}, and there are workers 0 to {n - 1}")
        return frozenset(self.workers)


@method("spread", "threat")
class Spread(Threat):
    """`count` workers at equal distances, in every round: no two in one vote group while there are groups enough."""

    count: int

    def validate(self) -> None:
        require(self.count >= 0, f"spread needs count >= 0, got count={self.count}")

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"spread({self.count}) needs at least {self.count} workers, got n={n}")
        return frozenset(i * n // self.count for i in range(self.count))


@method("drawn", "threat")
class Drawn(Threat):
    """`count` workers drawn at random from the run's seed.

    Args:
        every: rounds after which they are drawn anew; 0 keeps them for the whole run.
    """

    count: int
    every: int = 0

    def validate(self) -> None:
        require(self.count >= 0, f"drawn needs count >= 0, got count={self.count}")
        require(self.every >= 0, f"drawn needs every >= 0 rounds, got every={self.every}")

    def at(self, index: int, n: int, seed: int) -> frozenset[int]:
        require(self.count <= n, f"drawn({self.count}) needs at least {self.count} workers, got n={n}")
        epoch = index // self.every if self.every else 0
        order = torch.randperm(n, generator=stream("byzantine", seed, epoch))
        return frozenset(order[: self.count].tolist())

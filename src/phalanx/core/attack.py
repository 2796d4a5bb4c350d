# SPDX-License-Identifier: Apache-2.0
"""The stage that rewrites the rows of Byzantine workers.

The place of the attack in the chain is the threat model. Before the wire stage, the adversary sends its rows in the
wire format; behind it (or as `gather(..., forge=...)`), the adversary forges what arrives.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from phalanx.core.clock import FORGING, Clock
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage
from phalanx.core.trees import State

Part = Literal["row", "directions", "installed"]  # the part of a row that an attack rewrites


@dataclass(frozen=True)
class View:
    """The rows that all workers computed, before corruption; an omniscient adversary sees them.

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
        """The rows of honest workers, (n - f, d); all rows when every worker is Byzantine."""
        if bool(self.byzantine.all()):
            return self.rows
        return self.rows[~self.byzantine.to(self.rows.device)]


class Attack(Stage):
    """A stage that rewrites the rows of Byzantine workers and leaves the others alone.

    Before a code it rewrites the rows of the units that they add up.

    The class attribute `omniscient` says that the attack reads the rows of all workers, `directions_only` that it
    leaves installed values, such as BatchNorm statistics, as they are.

    The time of an attack is noted as `attack_s`; it counts towards no part of the round.
    """

    rows_of = "single workers"
    omniscient: ClassVar[bool] = False
    directions_only: ClassVar[bool] = False

    @property
    def asks_all(self) -> bool:
        """Whether the attack needs data of all workers, which no worker's process of a server's job has."""
        return self.omniscient

    @property
    def part(self) -> Part:
        """The part of a row that the attack rewrites."""
        return "directions" if self.directions_only else "row"

    @abstractmethod
    def forge(self, stack: Stack, view: View | None, state: State, round: Round) -> tuple[Tensor, State]:
        """The rows that the adversary sends in place of its own. Shapes: (q, d) -> (q, d) or (d,).

        Args:
            stack: the q rows that the adversary's workers computed; none in a process of honest workers only.
            view: the rows of all workers for an omniscient attack; None for others.
        """

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        state = dict(state or {})
        if not round.byzantine:
            return stack, state
        clock = Clock()
        forged_rows = [i for i, s in enumerate(stack.sources) if s and set(s) <= round.byzantine]
        view = self.look(stack, round)
        # pieces of one row draw from different streams
        piece = round.child(" ".join(stack.layout.names))
        forged, state = self.forge(stack.pick(forged_rows), view, state, piece)
        if forged_rows:
            rows, cut = stack.rows.clone(), stack.layout.stepped
            columns = {"row": slice(None), "directions": slice(cut), "installed": slice(cut, None)}[self.part]
            rows[forged_rows, columns] = forged.to(rows.dtype).expand(len(forged_rows), -1)[:, columns]
            stack = stack.with_rows(rows)
        clock.lap(FORGING)
        return stack.note(clock.notes), state

    def look(self, stack: Stack, round: Round) -> View | None:
        """The rows of all workers for an omniscient attack; None for others."""
        if not self.omniscient:
            return None
        if stack.received:
            byzantine = [set(s) <= round.byzantine for s in stack.sources]
            return View(stack.rows, torch.tensor(byzantine, dtype=torch.bool), tuple(s[0] for s in stack.sources))
        rows, workers = stack.rows, round.world.workers
        if stack.units is not None:
            # of every worker the rows of its units, one after the other
            mine = stack.rows[[i for places in stack.places.values() for i in places]]
            rows = mine.reshape(len(round.world.local_workers), -1)
            rows = round.collective.all_gather(rows).reshape(-1, stack.layout.d)
            workers = tuple(w for w in workers for _ in range(len(rows) // len(workers)))
        else:
            rows = round.collective.all_gather(rows)
        return View(rows, torch.tensor([w in round.byzantine for w in workers], dtype=torch.bool), workers)

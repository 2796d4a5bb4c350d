# SPDX-License-Identifier: Apache-2.0
"""Byzantine workers: who they are, and the stage that rewrites their rows.

The place of the attack in the chain is the threat model: before the wire stage the adversary speaks the wire format,
after it (or as `gather(..., forge=...)`) it forges what arrives.
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
        """The part of a row that the attack rewrites."""
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
        forged_rows = [i for i, s in enumerate(stack.sources) if s and set(s) <= round.byzantine]
        view = self.look(stack, round)
        workers = tuple(stack.sources[i][0] for i in forged_rows)
        # pieces of one row draw from different streams
        piece = round.child(" ".join(stack.layout.names))
        forged, state = self.forge(stack.rows[forged_rows], workers, view, state, piece)
        if forged_rows:
            rows, cut = stack.rows.clone(), stack.layout.stepped
            aimed = {"row": slice(None), "directions": slice(cut), "installed": slice(cut, None)}[self.part]
            rows[forged_rows, aimed] = forged.to(rows.dtype).expand(len(forged_rows), -1)[:, aimed]
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
        rows = round.collective.all_gather(stack.rows)
        workers = round.world.workers
        return View(rows, torch.tensor([i in round.byzantine for i in workers], dtype=torch.bool), workers)

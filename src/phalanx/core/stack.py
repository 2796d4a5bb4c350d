# SPDX-License-Identifier: Apache-2.0
"""The stack: rows, and what is known of them.

Legend, everywhere in the library: n workers, f tolerated Byzantine workers, k rows held here, d row length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from phalanx.core.allocation import Allocation
from phalanx.core.columns import Columns
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload


@dataclass(frozen=True)
class Note:
    """A measurement or an event that a stage reports.

    kind is one of: "bytes" (value bytes that a worker sent), "excluded" (reason says why the gate or the wire dropped
    the worker's row), "false_row" (the row was dropped because it is not finite or absurdly large), "chosen" (a rule
    took the worker's row, and not those of others), "outvoted" (a vote or a code went against the worker),
    "lost_groups" (groups whose vote the Byzantine workers won), "undecided" (groups without a majority), "unprotected"
    (groups decided by so few members that one liar among them is one too many), "seconds" (that this process spent on
    the part that reason names), "notice" (reason is a sentence for the user), or a stage's own word.
    """

    kind: str
    worker: int | None = None
    value: float = 1.0
    reason: str = ""


@dataclass(frozen=True)
class Stack:
    """k rows, and what is known of each.

    Args:
        rows: (k, d), of the layout's dtype, on any device.
        sources: the workers behind each row; more than one after a vote or an average.
        weights: (k,) float64 on the CPU, examples behind each row.
        received: True once the stack has crossed the wire.
        gated: True while every row is known to be finite and bounded.
        erased: number of missing and excluded rows; they count towards f.
        arrived: the rows as they came off the wire, for the statistics of workers.
        replies: what the server replies to single workers with the next round.
        units: the unit of work that each row is the vote of, or that it is before a code; None for other rows.
        announcement: what the wire stage has all workers know in the next round, as `Round.announced`.
        columns: which columns of the whole rows these are, where each process has some; None where they are whole.
        squares: by worker, the squared length of its row's directions and the row's squared distance to the result,
            where no process has whole rows in `arrived`.
    """

    rows: Tensor
    layout: Layout
    sources: tuple[tuple[int, ...], ...]
    weights: Tensor
    received: bool = False
    gated: bool = False
    erased: int = 0
    notes: tuple[Note, ...] = ()
    arrived: Stack | None = field(default=None, repr=False)
    replies: Mapping[int, Payload] = field(default_factory=dict, repr=False)
    units: tuple[int, ...] | None = None
    announcement: Payload = field(default_factory=dict, repr=False)
    columns: Columns | None = field(default=None, repr=False)
    squares: Mapping[int, tuple[float, float]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        k = self.rows.shape[0]
        assert self.units is None or len(self.units) == k
        assert self.rows.dim() == 2 and len(self.sources) == k and len(self.weights) == k

    @staticmethod
    def of(rows: Tensor, layout: Layout | None = None, ids: Sequence[int] | None = None) -> Stack:
        """A stack of equal weights; rows of workers 0 .. k-1 unless `ids` names them."""
        k, d = rows.shape
        ids = range(k) if ids is None else ids
        weights = torch.ones(k, dtype=torch.float64)
        return Stack(rows, layout or Layout.flat(d, rows.dtype), tuple((i,) for i in ids), weights)

    @staticmethod
    def of_units(rows: Tensor, allocation: Allocation, layout: Layout | None = None) -> Stack:
        """The rows of all units before a code, (num_units, d), each for all workers that have the unit."""
        workers = range(len(allocation.units))
        holders = [tuple(w for w in workers if unit in allocation.units[w]) for unit in range(len(rows))]
        return replace(Stack.of(rows, layout), sources=tuple(holders), units=tuple(range(len(rows))))

    @property
    def ids(self) -> tuple[int, ...]:
        """The worker of each row; only before rows were merged."""
        assert all(len(s) == 1 for s in self.sources)
        return tuple(s[0] for s in self.sources)

    def order_key(self, i: int) -> tuple[int, ...]:
        """What orders the rows alike wherever they lie and whoever won: the unit voted on, else the workers behind."""
        return self.sources[i] if self.units is None else (self.units[i],)

    @property
    def workers(self) -> tuple[int, ...]:
        """The workers behind all rows, ascending."""
        return tuple(sorted({worker for source in self.sources for worker in source}))

    @property
    def places(self) -> dict[int, list[int]]:
        """The positions of each worker's rows, by unit; before a code, where equal rows are shared."""
        units = self.units or ()
        order = sorted(range(len(units)), key=units.__getitem__)
        return {worker: [i for i in order if worker in self.sources[i]] for worker in self.workers}

    def by_worker(self) -> Stack:
        """A row for each worker: the mean of those of its units, or its own where it has one."""
        if self.units is None:
            return self
        rows = [self.rows[places].mean(dim=0) for places in self.places.values()]
        weights = torch.stack([self.weights[places].sum() for places in self.places.values()])
        ids = tuple((worker,) for worker in self.places)
        return replace(self, rows=torch.stack(rows), sources=ids, weights=weights, units=None)

    def with_rows(self, rows: Tensor, *, gated: bool = False) -> Stack:
        """The same workers with other rows, (k, d); say gated=True only if they are still finite."""
        return replace(self, rows=rows, gated=gated)

    @property
    def directions(self) -> Stack:
        """The rows without their installed values."""
        columns = None if self.columns is None else self.columns.directions
        return replace(self, rows=self.rows[:, : self.layout.stepped], layout=self.layout.head, columns=columns)

    @property
    def installed(self) -> Stack:
        """The installed values of the rows."""
        columns = None if self.columns is None else self.columns.installed
        return replace(self, rows=self.rows[:, self.layout.stepped :], layout=self.layout.tail, columns=columns)

    def norms(self) -> Tensor:
        """The Euclidean norms of the whole rows, in float64. Shapes: (k, d) -> (k,)."""
        if self.columns is None:
            return torch.linalg.vector_norm(self.rows, dim=1, dtype=torch.float64)
        return self.columns.total(self._squares, self.weights.to(self.rows.device)).sqrt()

    def _squares(self, part: slice) -> Tensor:
        return torch.linalg.vector_norm(self.rows[:, part].contiguous(), dim=1, dtype=torch.float64).square()

    def pick(self, indices: Sequence[int], in_place: bool = False) -> Stack:
        """The rows at these positions. Shapes: (k, d) -> (len(indices), d).

        Args:
            in_place: whether rows may move up within their own memory, which takes no more of it; then the positions
                ascend, and the present stack is not used again.
        """
        chosen = list(indices)
        if chosen == list(range(len(self.rows))):
            return self
        return replace(
            self,
            rows=_moved_up(self.rows, chosen) if in_place and type(self.rows) is Tensor else self.rows[chosen],
            sources=tuple(self.sources[i] for i in chosen),
            weights=self.weights[chosen],
            units=None if self.units is None else tuple(self.units[i] for i in chosen),
        )

    def one(self, row: Tensor) -> Stack:
        """A stack of one row (d,) that stands for all rows, with all their workers and their total weight."""
        return replace(
            self,
            rows=row.reshape(1, -1),
            sources=(tuple(sorted({i for s in self.sources for i in s})),),
            weights=self.weights.sum().reshape(1),
            units=None,
        )

    def merged(self, rows: Tensor, members: Sequence[Sequence[int]]) -> Stack:
        """A stack of rows (m, d), each of which stands for a group of the present rows; weights add up."""
        return replace(
            self,
            rows=rows,
            sources=tuple(tuple(sorted(i for p in group for i in self.sources[p])) for group in members),
            weights=torch.stack([self.weights[list(group)].sum() for group in members])
            if len(members)
            else self.weights[:0],
            units=None,
        )

    def erase(self, reasons: dict[int, str], in_place: bool = False) -> Stack:
        """The stack without the rows at these positions; each becomes an erasure with a reason.

        Args:
            in_place: of `pick`.
        """
        if not reasons:
            return self
        notes = [Note("excluded", worker, reason=reason) for i, reason in reasons.items() for worker in self.sources[i]]
        kept = self.pick([i for i in range(len(self.rows)) if i not in reasons], in_place)
        return replace(kept, erased=self.erased + len(reasons)).note(notes)

    def note(self, notes: Iterable[Note]) -> Stack:
        """The stack with more notes."""
        return replace(self, notes=self.notes + tuple(notes))

    def faults_left(self, f: int) -> int:
        """The number of Byzantine rows that may still be among these: f minus the rows already erased."""
        return max(0, f - self.erased)


def _moved_up(rows: Tensor, chosen: Sequence[int]) -> Tensor:
    """The rows at these ascending positions, moved to the first places of their table."""
    for place, i in enumerate(chosen):
        if place != i:
            rows[place].copy_(rows[i])
    return rows[: len(chosen)]

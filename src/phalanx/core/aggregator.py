# SPDX-License-Identifier: Apache-2.0
"""The base class of aggregation rules, which the server applies to received rows: (n, d) -> (1, d) or (m, d)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from phalanx.core.gate import admit
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Stage, TooFewRows
from phalanx.core.trees import State


class Aggregator(Stage):
    """An aggregation rule; it combines the rows that the server received.

    Every rule passes its rows through the gate first, so `combine` sees finite rows only; missing and excluded rows
    count towards f. The class attribute `requirement` states the smallest n in words, such as "n >= 2f + 3".
    """

    rows_of = "all workers"
    requirement: ClassVar[str] = "n >= 1"

    def least(self, f: int) -> int:
        """The smallest n that the rule can work with when f of the rows may be Byzantine."""
        return 1

    def merges(self, n: int) -> int:
        """The number of rows that the rule returns for n rows."""
        return 1

    @abstractmethod
    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        """Applies the rule to finite rows, at least `least(f)` of them, of which f may be Byzantine."""

    def rows_out(self, n: int) -> int:
        self._check_enough(n, self.tolerates(n))
        return self.merges(n)

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        stack = admit(stack)
        f = stack.faults_left(self.tolerates(len(stack.rows) + stack.erased))
        self._check_enough(len(stack.rows), f, stack.notes)
        return self.combine(stack, f, state, round)

    def _check_enough(self, n: int, f: int, notes: tuple[Note, ...] = ()) -> None:
        if n < max(self.least(f), 1):
            name = self.expression_name
            num_excluded = sum(note.kind == "excluded" for note in notes)
            detail = f"{num_excluded} were left out, missing or not finite"
            hint = detail if num_excluded else "take more workers or a smaller f"
            raise TooFewRows(f"{name} needs {self.requirement} rows, got n={n}, f={f}; {hint}", notes)

# SPDX-License-Identifier: Apache-2.0
"""Rules at the server: (n, d) -> (1, d), or (m, d) where one rule prepares the rows for the next."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from phalanx.core.gate import admit
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Stage, TooFewRows
from phalanx.core.trees import State


class Aggregator(Stage):
    """A rule over received rows.

    The gate stands before every rule, so `combine` sees finite rows only; rows that are missing or were excluded count
    towards f. Class attribute `requirement`: the words of the least n, such as "n >= 2f + 3".
    """

    requirement: ClassVar[str] = "n >= 1"

    def tolerates(self, n: int) -> int:
        """f, the Byzantine rows among n that this rule is set to stand."""
        return 0

    def least(self, f: int) -> int:
        """The smallest n that the rule can work with when f of the rows may be Byzantine."""
        return 1

    def merges(self, n: int) -> int:
        """The number of rows that the rule makes of n rows."""
        return 1

    @abstractmethod
    def combine(self, stack: Stack, f: int, state: State | None, round: Round) -> tuple[Stack, State]:
        """The rule itself: finite rows, at least `least(f)` of them, of which f may be Byzantine."""

    def rows_out(self, n: int) -> int:
        self._enough(n, self.tolerates(n))
        return self.merges(n)

    def __call__(self, stack: Stack, state: State | None, round: Round) -> tuple[Stack, State]:
        stack = admit(stack)
        f = stack.faults_left(self.tolerates(len(stack.rows) + stack.erased))
        self._enough(len(stack.rows), f, stack.notes)
        return self.combine(stack, f, state, round)

    def _enough(self, n: int, f: int, notes: tuple[Note, ...] = ()) -> None:
        if n < max(self.least(f), 1):
            name = self.expression_name
            gone = sum(note.kind == "excluded" for note in notes)
            why = f"{gone} were left out, missing or not finite" if gone else "take more workers or a smaller f"
            raise TooFewRows(f"{name} needs {self.requirement} rows, got n={n}, f={f}; {why}", notes)

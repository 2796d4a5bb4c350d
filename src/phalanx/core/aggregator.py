# SPDX-License-Identifier: Apache-2.0
"""Rules at the server: (n, d) -> (1, d), or (m, d) where one rule prepares the rows for the next."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from phalanx.core.gate import Gate, admit
from phalanx.core.layout import Layout
from phalanx.core.round import Round
from phalanx.core.stack import Note, Stack
from phalanx.core.stage import Stage, TooFewRows
from phalanx.core.trees import State

if TYPE_CHECKING:
    Rows = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]


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

    def aggregate(self, rows: Rows, weights: Sequence[float] | Tensor | None = None, seed: int = 0) -> Tensor:
        """The rule applied to plain rows, as one vector (d,) of their type, dtype and device.

        Args:
            rows: an (n, d) tensor or array, or a list of n tensors or arrays of one shape. A row of another shape or
                dtype than most, or with NaN, Inf or absurd entries, is excluded and counts towards f.
            weights: n examples behind each row, as the caller knows them; equal when None. Absurd ones are excluded as
                in a round, the others are not cut.
            seed: for the rules that shuffle.
        Raises:
            ValueError: too few rows for the rule, or rows that are no floating-point numbers.
        """
        result = self.outcome(rows, weights, seed).rows[0]
        like = rows if isinstance(rows, Tensor) else rows[0] if len(rows) else None
        return result if isinstance(like, Tensor) else result.numpy()  # type: ignore[return-value]

    def outcome(self, rows: Rows, weights: Sequence[float] | Tensor | None = None, seed: int = 0) -> Stack:
        """The result of `aggregate` with its notes: who was excluded and why, and what the rule itself reports."""
        stack = Gate(weights="trusted").admit(_stack_of(rows, weights, self.expression_name))
        stack, _ = self(stack, None, Round(seed=seed))
        if len(stack.rows) != 1:
            raise ValueError(
                f"{self!r} gives {len(stack.rows)} rows and prepares them for a rule; put it in a chain before one"
            )
        return stack


def _stack_of(rows: Rows, weights: Sequence[float] | Tensor | None, name: str) -> Stack:
    bad: dict[int, str] = {}
    if isinstance(rows, Tensor):
        table = rows.detach()
    elif isinstance(rows, list | tuple):
        table, bad = _table([torch.as_tensor(r).detach() for r in rows], name)
    else:
        array = np.asarray(rows)
        # torch reads neither negative strides nor read-only arrays
        table = torch.from_numpy(array if all(s > 0 for s in array.strides) and array.flags.writeable else array.copy())
    if table.dim() != 2:
        raise ValueError(f"{name} takes rows of shape (n, d), got {tuple(table.shape)}")
    if not table.is_floating_point():
        raise ValueError(f"{name} takes floating-point rows, got {table.dtype}; convert them first")
    n, d = table.shape
    claimed = torch.ones(n, dtype=torch.float64)
    if weights is not None:
        claimed = torch.as_tensor(weights, dtype=torch.float64, device="cpu").flatten()
        if len(claimed) != n:
            raise ValueError(f"{name} takes one weight a row, got {len(claimed)} weights for n={n} rows")
    layout = Layout.flat(d, table.dtype)
    return Stack(table, layout, tuple((i,) for i in range(n)), claimed, received=True).erase(bad)


def _table(rows: list[Tensor], name: str) -> tuple[Tensor, dict[int, str]]:
    """(n, d) from rows that may disagree: the form of most of them counts, the others are bad."""
    if not rows:
        raise TooFewRows(f"{name} needs at least one row, got none")
    forms = Counter((tuple(r.shape), r.dtype) for r in rows)
    (shape, dtype), _ = forms.most_common(1)[0]
    first = next(r for r in rows if (tuple(r.shape), r.dtype) == (shape, dtype))
    table = first.new_zeros(len(rows), first.numel())
    bad = {}
    for i, row in enumerate(rows):
        if (tuple(row.shape), row.dtype) == (shape, dtype):
            table[i] = row.flatten()
        else:
            bad[i] = f"{tuple(row.shape)} {row.dtype} where most rows are {shape} {dtype}"
    return table, bad

# SPDX-License-Identifier: Apache-2.0
"""Rows that arrived as payloads and are decoded only when they are read, so that a mean needs no table of rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from phalanx.core.buffers import RowBuffer, empty_rows
from phalanx.core.layout import Layout
from phalanx.core.payload import Payload

_PASSES = 3  # over the columns before it pays to decode all rows into a table


class Checked(NamedTuple):
    """A payload that its codec wrote, or could have.

    Args:
        bound: no entry of its row has a larger magnitude; NaN where an entry is NaN.
        parts: what `Adder.sum` takes.
    """

    bound: float
    parts: Any


class Adder(ABC):
    """Adds the rows of a codec's payloads, for one layout, without a table of them."""

    @abstractmethod
    def check(self, payload: Payload) -> Checked:
        """The payload, checked without writing its row.

        Raises:
            BadPayload: for the payloads for which `decode` raises it.
        """

    @abstractmethod
    def sum(self, parts: Sequence[Any], shares: Sequence[float], out: Tensor, start: int = 0) -> None:
        """Writes sum_i shares[i] row_i to `out`: from zero, in the order of rows, products and sums rounded to float32.

        Args:
            parts: those of one `Checked` for each row.
            out: (m,) float32 on the CPU, for the entries start .. start + m - 1 of a row.
        """


class VoteAdder(Adder):
    """Also counts the votes of rows whose entries are 1 or -1."""

    @abstractmethod
    def vote(self, parts: Sequence[Any], out: Tensor) -> None:
        """Writes the sign that more rows have at each entry, 0 for a tie. Shapes: out (d,) float32."""


@dataclass(frozen=True)
class CodedRow:
    """One row that has not been decoded.

    Args:
        payload: of its directions.
        installed: its installed values, (d - stepped,).
    """

    checked: Checked
    payload: Payload
    installed: Tensor


@dataclass(frozen=True)
class Coding:
    """What decodes the rows of a table.

    Args:
        layout: of whole rows.
        decode: makes the directions of a row of its payload.
    """

    layout: Layout
    adder: Adder
    decode: Callable[[Payload], Tensor]


class CodedRows(Tensor):
    """A table (k, d) of coded rows: a tensor that decodes its rows into a table at the first operation on them.

    Its form, some of its rows, and some of its columns are to be had without that, and `weighted_sum` adds the rows up
    in pieces that stay in cache.
    """

    _rows: tuple[CodedRow, ...]
    _coding: Coding
    _form: Tensor  # of the table's shape and dtype, in the memory of one number
    _table: Tensor | None
    _columns_read: int

    @staticmethod
    def of(rows: Sequence[CodedRow], coding: Coding) -> CodedRows:
        """The table of these rows, on the CPU."""
        layout = coding.layout
        form = torch.zeros((), dtype=layout.dtype).expand(len(rows), layout.d)
        table = form.as_subclass(CodedRows)
        table._rows, table._coding, table._form, table._table, table._columns_read = tuple(rows), coding, form, None, 0
        return table

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FORM:
            return func(*_replaced(args, _form_of), **_replaced(kwargs or {}, _form_of))
        if func is Tensor.__getitem__ and isinstance(args[0], CodedRows):
            part = args[0]._part(args[1])
            if part is not None:
                return part
        return func(*_replaced(args, CodedRows.read), **_replaced(kwargs or {}, CodedRows.read))

    def read(self) -> Tensor:
        """The decoded rows, (k, d); decoded once."""
        if self._table is None:
            table = RowBuffer(len(self._rows), self._coding.layout.d, self._form)
            for row in self._rows:
                table.add([self._coding.decode(row.payload), row.installed])
            self._table = table.rows
        return self._table

    @property
    def is_read(self) -> bool:
        """Whether the decoded rows are in memory."""
        return self._table is not None

    @property
    def bounds(self) -> list[float]:
        """For each row a bound on the magnitudes of its directions, NaN where one is NaN."""
        return [row.checked.bound for row in self._rows]

    @property
    def installed(self) -> Tensor:
        """The installed values of the rows. Shapes: (k, d - stepped)."""
        layout = self._coding.layout
        rows = [row.installed for row in self._rows]
        return torch.stack(rows) if rows else torch.empty(0, layout.d - layout.stepped, dtype=layout.dtype)

    def row(self, i: int) -> Tensor:
        """One decoded row (d,)."""
        if self._table is not None:
            return self._table[i]
        return torch.cat([self._coding.decode(self._rows[i].payload), self._rows[i].installed])

    def weighted_sum(self, shares: Tensor) -> Tensor:
        """sum_i shares_i row_i, added up in the order of the rows. Shapes: (k,) -> (d,)."""
        layout, floats = self._coding.layout, shares.to("cpu", torch.float32)
        total = empty_rows(1, layout.d, self._form)[0]
        self._coding.adder.sum([row.checked.parts for row in self._rows], floats.tolist(), total[: layout.stepped])
        if layout.num_installed:
            total[layout.stepped :] = floats @ self.installed
        return total

    def vote(self, out: Tensor) -> bool:
        """Writes the majority's sign at each entry to `out` (d,); False where not all entries are 1 or -1."""
        adder, layout = self._coding.adder, self._coding.layout
        if not isinstance(adder, VoteAdder) or layout.num_installed or self.is_read:
            return False
        adder.vote([row.checked.parts for row in self._rows], out)
        return True

    def _part(self, index: Any) -> Tensor | None:
        """Some rows or columns, where they are to be had without decoding the others."""
        if self._table is not None:
            return None
        if isinstance(index, list) and all(type(i) is int for i in index):
            return CodedRows.of([self._rows[i] for i in index], self._coding)
        if not (isinstance(index, tuple) and len(index) == 2 and index[0] == slice(None)):
            return None
        layout, columns = self._coding.layout, index[1]
        if not isinstance(columns, slice) or columns.step not in (None, 1):
            return None
        start, stop, _ = columns.indices(layout.d)
        if (start, stop) == (0, layout.d):
            return self
        if (start, stop) == (0, layout.stepped):
            rows = [replace(row, installed=row.installed[:0]) for row in self._rows]
            return CodedRows.of(rows, replace(self._coding, layout=layout.head))
        self._columns_read += max(0, stop - start)
        return None if self._columns_read > _PASSES * layout.d else self._columns(start, max(start, stop))

    def _columns(self, start: int, stop: int) -> Tensor:
        """The decoded columns start .. stop - 1."""
        cut = self._coding.layout.stepped
        part = empty_rows(len(self._rows), stop - start, self._form)
        inside = min(stop, cut) - start
        for entries, row in zip(part, self._rows, strict=True):
            if inside > 0:
                self._coding.adder.sum([row.checked.parts], [1.0], entries[:inside], start)
            if stop > cut:
                entries[max(0, inside) :] = row.installed[max(0, start - cut) : stop - cut]
        return part


# what asks for the form of a table only
_FORM = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")),
    *(getattr(Tensor, name).__get__ for name in ("requires_grad", "is_sparse", "is_quantized", "is_meta")),
    *(Tensor.size, Tensor.dim, Tensor.__len__, Tensor.numel, Tensor.nelement, Tensor.element_size),
    *(Tensor.is_floating_point, torch.is_floating_point, Tensor.new_empty, Tensor.new_zeros, Tensor.new_full),
}


def _form_of(table: CodedRows) -> Tensor:
    return table._form


def _replaced(value: Any, by: Callable[[CodedRows], Tensor]) -> Any:
    """Arguments of an operation with each table of coded rows replaced."""
    if isinstance(value, CodedRows):
        return by(value)
    if isinstance(value, tuple | list):
        return type(value)(_replaced(each, by) for each in value)
    if isinstance(value, dict):
        return {key: _replaced(each, by) for key, each in value.items()}
    return value

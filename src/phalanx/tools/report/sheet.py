# SPDX-License-Identifier: Apache-2.0
"""A table of plain values, for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Cell = str | float | bool | None


@dataclass(frozen=True)
class Sheet:
    """What a recipe reports beyond the table of all runs.

    Args:
        rows: a cell for each word of the header; None where nothing was measured.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        return {"title": self.title, "header": list(self.header), "rows": [list(row) for row in self.rows]}

    def words(self) -> list[Sequence[str]]:
        """The rows as people read them: three digits, yes and no, a dash for None."""
        return [[_word(cell) for cell in row] for row in self.rows]


def _word(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, str):
        return cell
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"

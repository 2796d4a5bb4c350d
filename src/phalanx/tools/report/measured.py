# SPDX-License-Identifier: Apache-2.0
"""Measurements that no recipe has a table for: every number by its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Cell, Sheet


def no_plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Draws nothing, as measurements have no curves."""


def measured_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each measurement that has ended, its numbers by keys and positions joined by dots."""
    return [
        Sheet(result.label, ("what", "measured"), tuple(_named(result.summary["measured"], ())))
        for result in results
        if "measured" in result.summary
    ]


def _named(value: Any, path: tuple[str, ...]) -> Iterator[tuple[Cell, Cell]]:
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _named(inner, (*path, str(key)))
    else:
        yield ".".join(path), value

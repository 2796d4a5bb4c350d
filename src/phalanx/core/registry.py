# SPDX-License-Identifier: Apache-2.0
"""The table of everything that an expression may name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One registered name; `build` makes the object from the fields."""

    name: str
    kind: str
    build: Callable[..., Any]

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]

    @property
    def signature(self) -> inspect.Signature:
        """The fields with their defaults."""
        return inspect.signature(self.build)


MANY = 40  # names that an error lists; of more only the nearest
NEAREST = 12

_entries: dict[str, Entry] = {}


def register(name: str, kind: str, build: Callable[..., Any]) -> None:
    """Adds a name; a second object under the same name is an error."""
    known = _entries.get(name)
    if known is not None and known.build is not build:
        raise ValueError(f"{name!r} is registered already, as a {known.kind}; choose another name")
    _entries[name] = Entry(name, kind, build)


def entries(kind: str | None = None) -> list[Entry]:
    """All entries, or those of one kind, by name."""
    return sorted((e for e in _entries.values() if kind in (None, e.kind)), key=lambda e: e.name)


def kinds() -> list[str]:
    """The kinds that have entries."""
    return sorted({e.kind for e in _entries.values()})


def lookup(name: str, wanted: type | None = None) -> Entry:
    """The entry of a name.

    Args:
        wanted: the type that fits here; it only shortens the list of choices in the error.
    Raises:
        ValueError: the name is not registered; the sentence lists the choices.
    """
    if name in _entries:
        return _entries[name]
    raise ValueError(f"unknown name {name!r}; {suggest(name, choices(wanted))}")


def choices(wanted: type | None) -> list[str]:
    """The names whose objects are of a type; all names when there is none."""
    fitting = [
        e.name for e in entries() if wanted is None or not isinstance(e.build, type) or issubclass(e.build, wanted)
    ]
    return fitting or [e.name for e in entries()]


def suggest(name: str, names: list[str]) -> str:
    """'did you mean a? choose from a, b, c' for an error sentence; of very many names the nearest."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    if len(names) <= MANY:
        return f"{hint}choose from {', '.join(names)}"
    nearest = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.0)
    return f"{hint}choose from {', '.join(nearest)}, ... ({len(names)} in all)"

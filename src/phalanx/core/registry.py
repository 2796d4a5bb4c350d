# SPDX-License-Identifier: Apache-2.0
"""The registry: every object that an expression may name, by kind and name.

Public names are imported when they are first used (`phalanx.core.namespace`), so a name is looked up in two steps: the
stubs of the library and of installed extensions say which module to import, and the import registers it.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from phalanx.core.namespace import Target, read_stub

MANY = 40  # names that an error lists; of more it lists the nearest only
NEAREST = 12
EXTENSIONS = "phalanx.methods"  # entry points of packages with further methods; the stubs of these name them
# modules whose names are public through their namespace, such as px.optim.sgd, and stand in no stub
_MODULES = ("phalanx.attacks.adversary", "phalanx.training.optim")


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

    def makes(self, wanted: type) -> bool:
        """Whether the objects of this entry are of a type."""
        result = self.build if isinstance(self.build, type) else typing.get_type_hints(self.build).get("return")
        return not isinstance(result, type) or issubclass(result, wanted)


class MissingModule(ValueError):
    """A module with names of the user's own cannot be imported."""


class AmbiguousName(ValueError):
    """Several objects have the name, and the wanted type fits more than one of them."""

    def __init__(self, name: str, entries: list[Entry]) -> None:
        super().__init__(
            f"{name!r} means different things: {_kinds_of(entries)}; write it in an argument that takes one"
        )
        self.entries = entries


_entries: dict[tuple[str, str], Entry] = {}
_extensions: list[str] = []


def register(name: str, kind: str, build: Callable[..., Any]) -> None:
    """Adds a name to a kind.

    Raises:
        ValueError: another object has this name and kind already.
    """
    known = _entries.get((kind, name))
    if known is not None and known.build is not build:
        raise ValueError(f"{name!r} is registered already, as a {kind}; choose another name")
    _entries[kind, name] = Entry(name, kind, build)


def import_extensions(modules: Iterable[str]) -> None:
    """Imports modules that register names of their own, from the current folder or installed packages.

    Args:
        modules: names as in an import statement, such as "my_module".
    Raises:
        MissingModule: there is no such module, or its code raises an exception.
    """
    for module in modules:
        if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
            raise MissingModule(f"{module!r} is no name of a module; give it as in an import statement, without .py")
        here = str(Path.cwd())
        if not {"", here} & set(sys.path):
            sys.path.insert(0, here)  # as `python -m` does, and the command `phalanx` does not
        try:
            import_module(module)
        except Exception as error:
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                place = f"neither in {here} nor among the installed packages"
                raise MissingModule(f"the module {module} is {place}; go to its folder or set PYTHONPATH") from None
            last = traceback.extract_tb(error.__traceback__)[-1]
            why = f"{type(error).__name__}: {error}; {last.filename}, line {last.lineno}"
            raise MissingModule(f"the module {module} cannot be imported ({why})") from error
        if module not in _extensions:
            _extensions.append(module)


def extensions() -> list[str]:
    """The modules that `import_extensions` has imported, for other processes of the job."""
    return list(_extensions)


def entries(kind: str | None = None) -> list[Entry]:
    """All entries, or those of one kind, by name."""
    _load_all()
    return sorted((e for e in _entries.values() if kind in (None, e.kind)), key=lambda e: (e.name, e.kind))


def kinds() -> list[str]:
    """The kinds that have entries."""
    return sorted({e.kind for e in entries()})


def lookup(name: str, wanted: type | None = None) -> Entry:
    """The entry of a name.

    A name that only one object has is returned even if its type does not fit: the constructor that takes the object
    then says which type it needs.

    Args:
        wanted: the type of the objects that fit here; it decides where several kinds have the name.
    Raises:
        AmbiguousName: several objects with this name fit.
        ValueError: no object has the name, or several have it and none fits; the sentence lists the choices.
    """
    _load(name)
    named = _named(name)
    if not named:
        # a package may register a name that no stub has
        _load_all()
        named = _named(name)
    if not named:
        import_hint = "a name of your own needs its module, as in phalanx run --import MODULE"
        raise ValueError(f"unknown name {name!r}; {suggest(name, choices(wanted))}; {import_hint}")
    if len(named) == 1:
        return named[0]
    fitting = [e for e in named if wanted is None or e.makes(wanted)]
    if not fitting:
        raise ValueError(
            f"{name!r} is the name of {_kinds_of(named)}, which do not fit here; {suggest(name, choices(wanted))}"
        )
    if len(fitting) > 1:
        raise AmbiguousName(name, fitting)
    return fitting[0]


def choices(wanted: type | None) -> list[str]:
    """The names whose objects are of a type; all names when there is none."""
    fitting = [e.name for e in entries() if wanted is None or e.makes(wanted)]
    return fitting or [e.name for e in entries()]


def suggest(name: str, names: list[str]) -> str:
    """'did you mean a? choose from a, b, c' for an error sentence; of very many names the nearest."""
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    if len(names) <= MANY:
        return f"{hint}choose from {', '.join(names)}"
    nearest = difflib.get_close_matches(name, names, n=NEAREST, cutoff=0.0)
    return f"{hint}choose from {', '.join(nearest)}, ... ({len(names)} in all)"


def _named(name: str) -> list[Entry]:
    return [e for (_, each), e in _entries.items() if each == name]


def _kinds_of(entries: list[Entry]) -> str:
    return " and ".join(f"{'an' if e.kind[0] in 'aeio' else 'a'} {e.kind}" for e in entries)


def _load(name: str) -> None:
    """Imports what may register a name."""
    for module in _MODULES:
        import_module(module)
    for target in _targets().get(name.lower(), ()):
        import_module(target.module)


@cache
def _load_all() -> None:
    for module in dict.fromkeys((*_MODULES, *(target.module for targets in _targets().values() for target in targets))):
        import_module(module)


@cache
def _targets() -> dict[str, list[Target]]:
    """Where each public name comes from, by its lower-case spelling, in all namespaces."""
    targets: dict[str, list[Target]] = {}
    for stub in _stubs():
        for name, target in read_stub(stub).items():
            targets.setdefault(name.lower(), []).append(target)
    return targets


def _stubs() -> Iterator[Path]:
    root = Path(__file__).parent.parent
    yield root / "__init__.pyi"
    yield from sorted(root.glob("*/__init__.pyi"))
    for entry in entry_points(group=EXTENSIONS):
        module = import_module(entry.value)
        assert module.__file__ is not None
        stub = Path(module.__file__).with_suffix(".pyi")
        if stub.is_file():
            yield stub

# SPDX-License-Identifier: Apache-2.0
"""Public names that are imported when they are first used (PEP 562).

A package says in its stub `__init__.pyi` which names it has and where they come from, in lines such as
`from phalanx.aggregators.krum import Krum as krum`. Type checkers read the stub, and so does `attach`.
"""

from __future__ import annotations

import ast
import difflib
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple


class Target(NamedTuple):
    """Where a public name comes from: an attribute of a module, or a submodule of a package."""

    module: str
    name: str

    def load(self) -> Any:
        """Imports the module and gives the object."""
        module = import_module(self.module)
        try:
            return getattr(module, self.name)
        except AttributeError:
            if not hasattr(module, "__path__"):
                raise
            return import_module(f"{self.module}.{self.name}")


class Namespace(ModuleType):
    """A package whose public names are loaded when they are first used."""

    def __getattr__(self, name: str) -> Any:
        targets = self.__dict__.get("_targets", {})
        if name in targets and targets[name] != (self.__name__, name):
            value = targets[name].load()
            super().__setattr__(name, value)
            return value
        if name in targets:
            return import_module(f"{self.__name__}.{name}")
        close = [] if name.startswith("_") else difflib.get_close_matches(name, list(targets), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{hint}")

    def __setattr__(self, name: str, value: Any) -> None:
        # importing a submodule binds it in its package, where a public name may be spelled alike
        target = self.__dict__.get("_targets", {}).get(name)
        if isinstance(value, ModuleType) and target is not None and value.__name__ != ".".join(target):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.__dict__.get("_targets", {})})


def attach(package: str, needs: Mapping[str, str] | None = None) -> None:
    """Gives a package the public names of its stub.

    Args:
        package: its `__name__`, while it is imported.
        needs: names that need an optional package, with that package; `import *` leaves a name out whose package is
            not installed.
    """
    module = sys.modules[package]
    assert module.__file__ is not None
    targets = read_stub(Path(module.__file__).with_suffix(".pyi"))
    module.__class__ = Namespace
    absent = {name for name, needed in (needs or {}).items() if not _is_installed(needed)}
    module.__dict__.update(_targets=targets, __all__=[name for name in targets if name not in absent])


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


@cache
def read_stub(path: Path) -> dict[str, Target]:
    """The public names of a stub: those that it imports `as` something."""
    return {
        alias.asname: Target(node.module, alias.name)
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname is not None
    }

# SPDX-License-Identifier: Apache-2.0
"""The commands of `phalanx`, by name: listed without an import, imported when they are called."""

from __future__ import annotations

import ast
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import click
import typer
from typer.core import TyperGroup

from phalanx.tools.cli.common import tell_loading

ENTRY_POINTS = "phalanx.commands"  # each names a function of an installed package, which becomes a command


class Target(NamedTuple):
    """The function behind a command: its module and its name."""

    module: str
    function: str

    def summary(self) -> str:
        """The first line of the function's docstring, read from its source without an import."""
        spec = find_spec(self.module)
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return ""
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == self.function:
                return (ast.get_docstring(node) or "").partition("\n")[0]
        return ""

    def load(self, name: str) -> click.Command:
        """The command, its module imported."""
        if self.module not in _OWN_MODULES:
            tell_loading()  # the commands of other packages may import torch at once
        single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        single.command(name)(getattr(import_module(self.module), self.function))
        return typer.main.get_command(single)


# in the order of `phalanx --help`
_COMMANDS = {
    "run": Target("phalanx.tools.cli.run", "run"),
    "status": Target("phalanx.tools.cli.status", "status"),
    "keys": Target("phalanx.tools.cli.keys", "keys"),
    "redteam": Target("phalanx.tools.cli.redteam", "redteam"),
    "list": Target("phalanx.tools.cli.listing", "list_names"),
    "show": Target("phalanx.tools.cli.show", "show"),
    "compare": Target("phalanx.tools.cli.compare", "compare"),
    "doctor": Target("phalanx.tools.cli.doctor", "doctor"),
    "probe": Target("phalanx.tools.cli.probe", "probe"),
    "advise": Target("phalanx.tools.cli.advise", "advise"),
    "explain": Target("phalanx.tools.cli.explain", "explain"),
    "factorize": Target("phalanx.tools.cli.factorize", "factorize"),
}
_OWN_MODULES = {target.module for target in _COMMANDS.values()}


class LazyCommands(MutableMapping[str, click.Command]):
    """The library's commands and those of installed packages; to read a value imports the command."""

    def __init__(self) -> None:
        self._loaded: dict[str, click.Command] = {}
        self.targets = dict(_COMMANDS)
        for entry in entry_points(group=ENTRY_POINTS):
            self.targets[entry.name] = Target(entry.module, entry.attr)

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            self._loaded[name] = self.targets[name].load(name)
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __contains__(self, name: object) -> bool:
        return name in self.targets or name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.targets, *self._loaded]))

    def __len__(self) -> int:
        return len(list(iter(self)))


class LazyGroup(TyperGroup):
    """A group of commands whose help imports none of them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands: MutableMapping[str, click.Command] = LazyCommands()

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        assert isinstance(self.commands, LazyCommands)
        rows = [(name, target.summary()) for name, target in self.commands.targets.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

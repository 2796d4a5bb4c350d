# SPDX-License-Identifier: Apache-2.0
"""The public interface as lines of text; run as a program, it writes them to public_api.txt.

The lines are the names of the stubs, spelled as users write them (`phalanx.aggregators.krum`), the notation of
expressions by kind, and the command line. Extensions such as phalanx_experiments are left out, installed or not.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import typer

import phalanx
from phalanx.core.expression import Expression
from phalanx.core.namespace import Target, read_stub
from phalanx.core.registry import entries
from phalanx.tools.cli.app import app
from phalanx.tools.cli.lazy_group import LazyCommands

FILE = Path(__file__).with_name("public_api.txt")
ROOT = Path(phalanx.__file__).parent
# public modules that stand in no stub
MODULES = ("phalanx.coding.odds", "phalanx.tools.report.selected")
# its names are read without importing it: it needs Flower
FLOWER = Target("phalanx.integrations", "flower")


def surface() -> list[str]:
    """Names with their signatures, the notation, and the command line."""
    lines = [line for package in packages() for line in names_of(package)]
    lines += [line for name in MODULES for line in members(name, import_module(name))]
    return [*sorted(lines), "", *notation(), "", *sorted(command_line())]


def packages() -> dict[str, dict[str, Target]]:
    """The packages that have a stub, with the names of the stub."""
    stubs = sorted(ROOT.rglob("__init__.pyi"))
    return {".".join(stub.parent.relative_to(ROOT.parent).parts): read_stub(stub) for stub in stubs}


def names_of(package: str) -> Iterator[str]:
    """The names of a package's stub; of a module among them, what it holds."""
    known = packages()
    for name, target in known[package].items():
        public = f"{package}.{name}"
        yield from [public] if public in known or target == FLOWER else []
        if target == FLOWER:
            yield from (f"{public}.{each}" for each in exported(ROOT / "integrations" / "flower" / "__init__.py"))
        elif public not in known:
            thing = getattr(import_module(package), name)
            if isinstance(thing, ModuleType) and hasattr(thing, "__path__"):
                assert thing.__file__ is not None
                yield public
                for each in exported(Path(thing.__file__)):
                    yield from described(f"{public}.{each}", getattr(thing, each))
            else:
                yield from members(public, thing) if isinstance(thing, ModuleType) else described(public, thing)


def members(public: str, module: ModuleType) -> Iterator[str]:
    """A module and what it defines, under the shorter name where a class has two, such as optim.sgd."""
    yield public
    own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__ and k[0] != "_"}
    renamed = {id(v) for k, v in own.items() if k != v.__name__}
    for key, value in own.items():
        if key != value.__name__ or id(value) not in renamed:
            yield from described(f"{public}.{key}", value)


def exported(file: Path) -> list[str]:
    """The names that an __init__ imports for others, read without importing it."""
    imports = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname for node in imports for alias in node.names if alias.asname is not None]


def described(name: str, thing: Any) -> Iterator[str]:
    """A name with its signature, and below it the methods that users call or write."""
    if not callable(thing):
        yield name
        return
    yield f"{name}{signature(thing)}"
    if isinstance(thing, type) and (inspect.isabstract(thing) or not issubclass(thing, Expression)):
        for key, value in vars(thing).items():
            if key.startswith("_"):
                continue
            if isinstance(value, property):
                yield f"{name}.{key}"
            elif isinstance(value, classmethod | staticmethod) or inspect.isfunction(value):
                yield f"{name}.{key}{signature(getattr(thing, key))}"


def signature(thing: Any) -> str:
    """Parameters and defaults; annotations as they are written."""
    try:
        found = inspect.signature(thing)
    except ValueError:
        return "(...)"
    parts = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    words = str(found.replace(parameters=parts, return_annotation=found.empty))
    return re.sub(r"<function (\S+) at 0x[0-9a-f]+>", r"\1", words)


def notation() -> Iterator[str]:
    """What an expression may name, by kind."""
    for entry in sorted(entries(), key=lambda entry: (entry.kind, entry.name)):
        # extensions and other tests register methods of their own
        if entry.build.__module__.startswith("phalanx."):
            yield f"{entry.kind}: {entry.name}{signature(entry.build)}"


def command_line() -> Iterator[str]:
    """Every command of the library with its arguments and options."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group) and isinstance(group.commands, LazyCommands)
    own = [name for name, target in group.commands.targets.items() if target.module.startswith("phalanx.")]
    for command in map(group.commands.__getitem__, own):
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
                yield f"phalanx {command.name} {'/'.join([*parameter.opts, *parameter.secondary_opts])}{value}"
            else:
                yield f"phalanx {command.name} {parameter.metavar or (parameter.name or '').upper()}"


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()) + "\n", encoding="utf-8")

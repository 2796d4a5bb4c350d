# SPDX-License-Identifier: Apache-2.0
"""The public interface as lines of text; run as a program, it writes them to public_api.txt."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import typer

import phalanx
from phalanx.core.expression import Expression
from phalanx.core.registry import entries
from phalanx.tools.cli.app import app

FILE = Path(__file__).with_name("public_api.txt")
PACKAGES = ("phalanx", "phalanx_experiments.theory", "phalanx_experiments.recipes")
MODULES = ("phalanx.ddp", "phalanx.coding.odds", "phalanx.tools.report.selected")


def surface() -> list[str]:
    """Names with their signatures, the notation, and the command line."""
    lines: list[str] = []
    for package in PACKAGES:
        module = import_module(package)
        lines += [line for name in exported(package) for line in described(f"{package}.{name}", getattr(module, name))]
    for name in MODULES:
        own = [(k, v) for k, v in vars(import_module(name)).items() if getattr(v, "__module__", "") == name]
        lines += [line for k, v in own if not k.startswith("_") for line in described(f"{name}.{k}", v)]
    lines += [f"phalanx.integrations.flower.{name}" for name in exported("phalanx.integrations.flower")]
    return [*sorted(lines), "", *notation(), "", *sorted(command_line())]


def exported(package: str) -> list[str]:
    """The names that a package's __init__ imports for others, read without importing it."""
    place = Path(phalanx.__file__).parent.joinpath(*package.split(".")[1:], "__init__.py")
    imports = [node for node in ast.parse(place.read_text()).body if isinstance(node, ast.ImportFrom)]
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
    for entry in entries():
        # other tests register methods of their own
        if entry.build.__module__.startswith("phalanx."):
            yield f"{entry.kind}: {entry.name}{signature(entry.build)}"


def command_line() -> Iterator[str]:
    """Every command with its arguments and options."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    for command in group.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
                yield f"phalanx {command.name} {'/'.join([*parameter.opts, *parameter.secondary_opts])}{value}"
            else:
                yield f"phalanx {command.name} {parameter.metavar or (parameter.name or '').upper()}"


if __name__ == "__main__":
    FILE.write_text("\n".join(surface()) + "\n")

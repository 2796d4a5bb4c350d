# SPDX-License-Identifier: Apache-2.0
"""The page on the command line, made from the program itself."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import click
import typer

from phalanx.tools.cli.app import app


def pages() -> list[tuple[str, str]]:
    """Address and text."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    parts = ["# The command line", f"{group.help} The same texts stand behind `phalanx COMMAND --help`."]
    for name, command in group.commands.items():
        parts += _command(name, command)
    return [("reference/command_line.md", "\n\n".join(parts) + "\n")]


def _command(name: str, command: click.Command) -> Iterator[str]:
    yield f"## phalanx {name}"
    context = click.Context(command, info_name=f"phalanx {name}")
    yield f"```text\n{' '.join(['phalanx', name, *command.collect_usage_pieces(context)])}\n```"
    for paragraph in (command.help or "").split("\n\n"):
        yield _paragraph(paragraph)
    options = [row for p in command.params if (row := p.get_help_record(context)) is not None]
    rows = [f"| `{names}` | {_cell(text)} |" for names, text in options if text]
    yield "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def _paragraph(text: str) -> str:
    """A paragraph of a help text; one that begins with a \\b is kept line by line."""
    if not text.startswith("\b"):
        return text
    title, _, rest = text.removeprefix("\b").strip("\n").partition("\n")
    return f"**{title}**\n\n```text\n{textwrap.dedent(rest)}\n```"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

# SPDX-License-Identifier: Apache-2.0
"""The command line. A command is imported when it is called, so that `phalanx --help` needs no torch."""

from __future__ import annotations

import os
from typing import Annotated

import typer

import phalanx
from phalanx.tools.cli.lazy_group import LazyGroup

app = typer.Typer(
    name="phalanx",
    cls=LazyGroup,
    help="Training on many machines when the network is slow or some of the machines cannot be trusted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: paragraphs fill the line, and examples can be copied
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of the command."""
    try:
        app()
    except SystemExit as end:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            raise
        from phalanx.distributed.job import hard_exit

        hard_exit(end.code if isinstance(end.code, int) else int(end.code is not None))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"phalanx {phalanx.__version__}")
        raise typer.Exit()


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Training on many machines when the network is slow or some of the machines cannot be trusted."""

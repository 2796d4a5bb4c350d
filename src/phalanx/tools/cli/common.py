# SPDX-License-Identifier: Apache-2.0
"""What all commands share: options, errors printed as one sentence, and JSON output."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec

import typer

from phalanx.core.expression import require

FAULT, STOPPED = 2, 130  # exit codes: an error of the user, and Ctrl-C

# what is wrong with a path, and what to do about it
_PATH_ERRORS = {
    errno.ENOENT: "is not there; check the path",
    errno.EEXIST: "is a file where a folder is needed; give another path",
    errno.ENOTDIR: "leads through a file; give another path",
    errno.EISDIR: "is a folder where a file is needed; give another path",
    errno.EACCES: "may not be read or written by this user; give another path, or change its rights",
    errno.EROFS: "lies on a disk that cannot be written; give another path",
}

P = ParamSpec("P")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, and nothing else there.")]
Recipe = Annotated[
    str | None, typer.Argument(help="Name of a recipe, a run(...) expression, or a file that holds one.")
]
Scale = Annotated[
    str | None,
    typer.Option(
        metavar="SCALE", help="smoke, laptop, paper: seconds, minutes, the published size; laptop if left out."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field in every run that has it; may be repeated."),
]
Only = Annotated[list[str] | None, typer.Option(metavar="LABEL", help="Only the run of this label; may be repeated.")]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import this module, which names your own; may be repeated."),
]
Jobs = Annotated[
    int,
    typer.Option(metavar="N", show_default=False, help="Runs at a time, each in a process of its own; 1 if left out."),
]
Seed = Annotated[
    int | None, typer.Option(metavar="SEED", help="Seed of every run; that of the recipe, mostly 0, if left out.")
]


def check_jobs(jobs: int) -> None:
    """Raises ValueError unless this process may run this many jobs at the same time."""
    require(jobs >= 1, f"--jobs takes a number of processes >= 1, got {jobs}")
    alone = jobs == 1 or "RANK" not in os.environ
    require(alone, f"--jobs {jobs} and torchrun both start processes; leave one of them out")


def user_command(command: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command: it says that torch is loading, and prints an error of the user as one sentence on stderr."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        tell_loading()
        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise
        except OSError as error:
            words = _PATH_ERRORS.get(error.errno or 0)
            if error.filename and words:
                _fail(f"{error.filename} {words}")
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}")
        except ValueError as error:
            _fail(str(error))

    return wrapped


def _fail(sentence: str) -> None:
    _tell(f"error: {sentence}")
    raise typer.Exit(FAULT)


def tell_loading() -> None:
    """Says that torch is loading, unless it is loaded already."""
    if "torch" not in sys.modules:
        _tell("loading torch ...")


def _tell(words: str) -> None:
    """Prints a line on stderr; under torchrun only rank 0 does."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(words, err=True)


def print_json(value: Any) -> None:
    """Prints a value on stdout as indented JSON."""
    typer.echo(json.dumps(value, indent=2))

# SPDX-License-Identifier: Apache-2.0
"""Commands of the documentation: run here, or at least read by the command line itself."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import typer
from click.testing import Result
from typer.testing import CliRunner

from phalanx.tools.cli.app import app
from phalanx.tools.runner.request import build_study
from phalanx_experiments.reproduce.catalogue import find as find_item
from tests.distributed.launch import forked, torchrun
from tests.docs.docs_blocks import ROOT, Block

PLAIN = ("cat", "ls", "head", "echo")  # other programs that a block may run


def commands(block: Block) -> list[tuple[str, str]]:
    """The commands of a block, each with the output that stands behind it."""
    text = re.sub(r"\s*\\\n\s*", " ", block.text)
    if not re.search(r"^\$ ", text, re.M):
        lines = [line.strip() for line in text.split("\n")]
        return [(line, "") for line in lines if line and not line.startswith("#")]
    parts = re.split(r"^\$ (.*)\n?", text, flags=re.M)
    assert not parts[0].strip(), f"{block.place}: output before the first command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


def run(line: str) -> str:
    """What a command prints, in the present folder; its exit code where `; echo $?` asks for it."""
    if line.endswith("; echo $?"):
        return _code(line.removesuffix("; echo $?"))
    out = ""
    for words in _steps(line):
        target = words[words.index(">") + 1] if ">" in words else None
        words = words[: words.index(">")] if target else words
        printed = _run_one(words)
        if target:
            Path(target).write_text(printed)
        else:
            out += printed
    return out


def _code(line: str) -> str:
    """The exit code of a command of ours whose output goes to a file."""
    (words,) = _steps(line)
    result = _invoked(words[: words.index(">")])
    Path(words[words.index(">") + 1]).write_text(result.stdout)
    return f"{result.exit_code}\n"


def _invoked(words: list[str]) -> Result:
    ours = _ours(words)
    assert ours is not None, f"{words[0]} is no command of ours"
    return CliRunner().invoke(app, ours)


def _run_one(words: list[str]) -> str:
    ours = _ours(words)
    if ours is not None and words[0] != "torchrun":
        result = _invoked(words)
        assert result.exit_code == 0, (words, result.output, result.stderr, result.exception)
        return result.stdout
    if words[0] == "torchrun":
        return _torchrun(words[1:])
    assert words[0] in PLAIN, f"{words[0]} cannot be run in a test; say <!-- not run: why --> above the block"
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def _torchrun(words: list[str]) -> str:
    assert words[0] == "--nproc-per-node", f"torchrun begins with --nproc-per-node here, not with {words[0]}"
    processes, argv = int(words[1]), words[2:]
    if argv[0].endswith(".py"):
        return forked(processes, "job_page.py", str(Path.cwd()), *argv, folder=Path.cwd())
    return torchrun(processes, *argv)


def check(line: str) -> None:
    """Raises unless a command that is not run exists as it is written: its options, recipes, labels and files."""
    for words in _steps(line):
        ours = _ours(words)
        if ours is not None:
            _check_ours(ours)
        elif words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
            assert set(words[1:]) <= set(targets), f"make has no such target: {line}"
        for word in words:
            if word.startswith(("benchmarks/", "examples/", "docs/", "tests/")):
                assert (ROOT / word).exists(), f"there is no {word}: {line}"


def _check_ours(words: list[str]) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    words = words[: words.index(">")] if ">" in words else words
    if words[0].startswith("-"):
        return
    assert words[0] in group.commands, f"phalanx has no command {words[0]}"
    context = group.commands[words[0]].make_context(words[0], list(words[1:]))
    _check_names(words[0], context.params)


def _check_names(command: str, asked: dict[str, Any]) -> None:
    recipe = asked.get("recipe") or asked.get("source")
    if command in ("run", "show", "redteam") and recipe and not recipe.endswith(".txt"):
        settings, only = asked.get("settings") or [], asked.get("only") or []
        build_study(recipe, asked.get("scale"), settings, only if command != "redteam" else [], None)
    if command == "reproduce" and asked.get("what"):
        find_item(asked["what"])


def _steps(line: str) -> list[list[str]]:
    """The commands of a line as words, without comments; what bash would do in one process after the other."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    steps: list[list[str]] = [[]]
    for word in lexer:
        if word in ("&&", "||", "|", ";"):
            steps.append([])
        elif word not in ("&", "nohup") and not word.startswith(">&"):
            steps[-1].append(word)
    return [step for step in steps if step]


def _ours(words: list[str]) -> list[str] | None:
    """What is said to our command line, if it is the one that runs."""
    if words[0] == "phalanx":
        return words[1:]
    for place in range(len(words) - 1):
        if words[place : place + 2] == ["-m", "phalanx"] and words[0] in ("python", "torchrun"):
            return words[place + 2 :]
    return None

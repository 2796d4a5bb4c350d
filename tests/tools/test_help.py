# SPDX-License-Identifier: Apache-2.0
import re
import shlex

import click
import pytest
import typer
from typer.testing import CliRunner

from phalanx.tools.cli.app import app

COMMANDS = typer.main.get_command(app)
assert isinstance(COMMANDS, click.Group)
NAMES = sorted(COMMANDS.commands)
WIDTH = 80


def helped(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=WIDTH, prog_name="phalanx")
    assert result.exit_code == 0
    return result.output


def examples(name: str) -> list[str]:
    """The commands of the part, those over several lines as one."""
    part = helped(name).partition("Examples:\n")[2].partition("\n\n")[0]
    return [line.strip() for line in part.replace("\\\n", " ").splitlines()]


def parsed(words: list[str]) -> click.Context:
    """A command line, read and not carried out."""
    assert isinstance(COMMANDS, click.Group)
    command = COMMANDS.commands[words[0]]
    return command.make_context(words[0], words[1:])


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_a_terminal(name: str) -> None:
    lines = helped(*([name] if name else [])).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "\\[" not in "".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_help_says_all_of_it(name: str) -> None:
    assert isinstance(COMMANDS, click.Group)
    command = COMMANDS.commands[name]
    (listed,) = [line for line in helped().splitlines() if line.startswith(f"  {name} ")]
    assert listed.endswith(".") and not listed.endswith("...")
    for parameter in command.params:
        words = getattr(parameter, "help", None)
        assert words and words.endswith("."), parameter.name
        if isinstance(parameter, click.Option) and not parameter.is_flag:
            assert parameter.metavar or parameter.type.name in ("path", "text"), parameter.name
            assert parameter.default in (None, ()) or "if left out" in words, parameter.name


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_commands(name: str) -> None:
    found = examples(name)
    assert len(found) >= 2
    for example in found:
        words = shlex.split(re.sub(r" > \w+\.txt$", "", example))
        if words[0] == "torchrun":
            words = ["phalanx", *words[words.index("phalanx") + 1 :]]
        assert words[0] == "phalanx" and (words[1] == name or name == "show")
        parsed(words[1:])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rn"], "Error: No such command 'rn'. Did you mean 'run'?"),
        (["list", "--jsno"], "Error: No such option: --jsno Did you mean --json?"),
        (["run", "quikstart"], "error: unknown recipe 'quikstart'; did you mean quickstart? choose from "),
    ],
)
def test_the_nearest_name_is_suggested(arguments: list[str], sentence: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and sentence in result.stderr

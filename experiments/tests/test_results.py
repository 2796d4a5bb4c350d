# SPDX-License-Identifier: Apache-2.0
"""The committed results are written in the names that the library has today."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import phalanx as px
from phalanx.tools.runner.request import build_study

RESULTS = Path(__file__).parents[1] / "results"
FILES = sorted(RESULTS.rglob("*.json"))
EXPRESSION = re.compile(r"[a-z_][a-z_0-9]*\(.*\)", re.DOTALL)
COMMAND = re.compile(r"phalanx run ([a-z0-9-]+)(.*)")


def texts(value: object) -> Iterator[str]:
    """Every string in a document, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str):
        yield value


def documents() -> list[str]:
    return list(dict.fromkeys(text for file in FILES for text in texts(json.loads(file.read_text()))))


def test_every_expression_is_one_of_today() -> None:
    # sqrt(rank) is a word above a column
    expressions = [text for text in documents() if EXPRESSION.fullmatch(text) and text != "sqrt(rank)"]
    assert len(expressions) > 500
    for text in expressions:
        px.parse(text)


def test_every_command_names_a_recipe_and_settings_of_today() -> None:
    found = [match for text in documents() if (match := COMMAND.fullmatch(text))]
    assert len(found) > 30
    for match in found:
        name, words = match[1], shlex.split(match[2])
        options = list(zip(words[::2], words[1::2], strict=True))
        settings = [value for option, value in options if option == "--set"]
        scale = next((value for option, value in options if option == "--scale"), None)
        assert build_study(name, scale, settings, [], None).jobs, match[0]

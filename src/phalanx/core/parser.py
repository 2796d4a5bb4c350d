# SPDX-License-Identifier: Apache-2.0
"""The parser turns text into objects; it reads registered names, literals and calls, and evaluates no Python."""

from __future__ import annotations

import ast
import inspect
import math
import types
import typing
import warnings
from typing import Any, NoReturn

from phalanx.core.expression import Expression
from phalanx.core.limits import check_depth
from phalanx.core.registry import AmbiguousName, Entry, entries, lookup, suggest

MAX_CHARACTERS = 20_000
PLACES = 3  # the most arguments that an error names
_CONSTANTS = {"inf": math.inf, "nan": math.nan}


def parse(text: str) -> Any:
    """The object that an expression builds; `parse(repr(x)) == x`.

    Args:
        text: such as ``"chain(alie(), gather(dense()), krum(f=2))"``; at most 20,000 characters.
    Raises:
        ValueError: what is wrong, the choices, and a caret under the character.

    >>> parse("krum(f=2)")
    krum(f=2)
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression has at most {MAX_CHARACTERS} characters, got {len(text)}")
    source = text.strip()
    if not source:
        raise ValueError("an expression is empty; write one such as krum(f=2)")
    check_depth(source, "an expression")
    try:
        tree = _tree(source)
    except SyntaxError as error:
        line, column = (error.lineno or 1) - 1, max((error.offset or 1) - 1, 0)
        lines = source.splitlines() or [""]
        raise _error(f"not an expression: {error.msg}", lines[min(line, len(lines) - 1)], column) from None
    except (RecursionError, MemoryError):
        raise ValueError("the expression is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not an expression: {error}") from None
    try:
        return _Reader(source).read(tree.body, None)
    except RecursionError:
        raise ValueError("the expression is nested too deeply") from None


def parse_value(text: str) -> Any:
    """A field's value from the command line: an expression or a literal where the text is one, else the text itself."""
    word = text.strip()
    if word.isidentifier() and word not in _CONSTANTS and word not in ("True", "False", "None"):
        return word
    try:
        check_depth(word, "a value")
        _tree(word)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return text
    return parse(word)


def _tree(source: str) -> ast.Expression:
    """The syntax tree of an expression; Python's warnings about odd literals are nobody's business here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(source, mode="eval")


class _Reader:
    def __init__(self, source: str) -> None:
        self.lines = source.splitlines() or [""]

    def read(self, node: ast.expr, wanted: type | None) -> Any:
        match node:
            case ast.Call(func=ast.Name(id=name)):
                return self.call(node, name, wanted)
            case ast.Constant(value=value) if isinstance(value, int) and abs(value) >= 2**63:
                self.fail("a whole number lies between -2^63 and 2^63", node)
            case ast.Constant(value=value) if value is None or isinstance(value, bool | int | float | str):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                value = self.read(operand, None)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return -value
                self.fail("only a number can be negative", node)
            case ast.BinOp(op=ast.Div(), left=above, right=below):
                return self.quotient(self.read(above, None), self.read(below, None), node)
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return tuple(self.read(item, wanted) for item in items)
            case ast.Name(id=name) if name in _CONSTANTS:
                return _CONSTANTS[name]
            case ast.Name(id=name):
                self.lookup(name, node, wanted)
                self.fail(f"{name} is called like a function: {name}(...)", node)
            case _:
                self.fail("an expression holds names, literals and calls only", node)

    def quotient(self, above: Any, below: Any, node: ast.expr) -> float:
        for value in (above, below):
            if isinstance(value, bool) or not isinstance(value, int | float):
                self.fail("only numbers can be divided", node)
        if below == 0:
            self.fail("a number cannot be divided by 0", node)
        return above / below

    def call(self, node: ast.Call, name: str, wanted: type | None) -> Any:
        entry = self.lookup(name, node, wanted)
        hints = _hints(entry)
        parameters = list(entry.signature.parameters.values())
        args, kwargs = [], {}
        for i, arg in enumerate(node.args):
            if isinstance(arg, ast.Starred):
                self.fail("an expression has no * arguments", arg)
            hint = _parameter_at(parameters, i)
            args.append(self.read(arg, _expected(hints.get(hint)) if hint else None))
        known = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
        for keyword in node.keywords:
            if keyword.arg not in known:
                have = suggest(keyword.arg or "**", known) if known else "it has none"
                self.fail(f"{name} has no field {keyword.arg!r}; {have}", keyword)
            if keyword.arg in kwargs:
                self.fail(f"{name} is given {keyword.arg} twice", keyword)
            kwargs[keyword.arg] = self.read(keyword.value, _expected(hints.get(keyword.arg)))
        try:
            entry.signature.bind(*args, **kwargs)
        except TypeError as error:
            self.fail(f"{name}: {error}; its fields are {', '.join(known) or 'none'}", node)
        try:
            return entry.build(*args, **kwargs)
        except ValueError as error:
            self.fail(str(error), node)

    def lookup(self, name: str, node: ast.expr, wanted: type | None) -> Entry:
        try:
            return lookup(name, wanted)
        except AmbiguousName as error:
            self.fail("; ".join([str(error), *filter(None, map(_places, error.entries))]), node)
        except ValueError as error:
            self.fail(str(error), node)

    def fail(self, sentence: str, node: ast.expr | ast.keyword) -> NoReturn:
        line = self.lines[node.lineno - 1]
        # ast counts columns in utf-8 bytes
        column = len(line.encode()[: node.col_offset].decode(errors="ignore"))
        raise _error(sentence, line, column) from None


def _error(sentence: str, line: str, column: int) -> ValueError:
    start = max(0, column - 60)
    shown = line[start : start + 100]
    return ValueError(f"{sentence} (character {column + 1})\n  {shown}\n  {' ' * (column - start)}^")


def _hints(entry: Entry) -> dict[str, Any]:
    return typing.get_type_hints(entry.build)


def _places(entry: Entry) -> str:
    """A sentence on the first arguments that take an object of this entry; empty when there are none."""
    places = [
        f"{taker.name}({argument}=...)"
        for taker in entries()
        for argument, hint in _hints(taker).items()
        if argument != "return" and (expected := _expected(hint)) is not None and entry.makes(expected)
    ]
    return f"the {entry.kind} stands in {', '.join(places[:PLACES])}" if places else ""


def _parameter_at(parameters: list[inspect.Parameter], i: int) -> str | None:
    if i < len(parameters):
        return parameters[i].name
    if parameters and parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        return parameters[-1].name
    return None


def _expected(hint: Any) -> type | None:
    """The one class that a hint asks for, through `X | None` and `tuple[X, ...]`."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType, tuple):
        inner = [_expected(h) for h in typing.get_args(hint)]
        return next((h for h in inner if h is not None), None)
    return hint if isinstance(hint, type) and issubclass(hint, Expression) else None

# SPDX-License-Identifier: Apache-2.0
"""Expressions on several lines."""

from __future__ import annotations

import ast

STEP = 2  # spaces


def pretty(text: str, width: int = 88) -> str:
    """The same expression with lines of at most `width` characters where its words allow; it still parses."""
    source = text.strip()
    return _lay(ast.parse(source, mode="eval").body, source, 0, 0, width)


def _lay(node: ast.expr, text: str, indent: int, key: int, width: int) -> str:
    """A node that begins `key` characters behind its line's indent."""
    whole = ast.get_source_segment(text, node) or ""
    pieces: list[tuple[str, ast.expr]] = []
    opening, closing = "", ")"
    if isinstance(node, ast.Call):
        opening = f"{ast.unparse(node.func)}("
        pieces = [("", a) for a in node.args] + [(f"{k.arg}=", k.value) for k in node.keywords]
    elif isinstance(node, ast.Tuple | ast.List):
        opening, closing = ("(", ")") if isinstance(node, ast.Tuple) else ("[", "]")
        pieces = [("", a) for a in node.elts]
    if not pieces or indent + key + len(whole) < width:
        return whole
    inner = indent + STEP
    lines = [f"{' ' * inner}{name}{_lay(value, text, inner, len(name), width)}," for name, value in pieces]
    return "\n".join([opening, *lines, " " * indent + closing])

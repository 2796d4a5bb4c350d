# SPDX-License-Identifier: Apache-2.0
"""Our docstrings in the form that the reference reads: sections apart, Shapes and Source as paragraphs."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTIONS = ("Args", "Returns", "Raises", "Yields", "Attributes", "Examples")
LINES = ("Shapes", "Source", "Differs")


class Docstrings(griffe.Extension):
    """Rewrites every docstring when it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)


def apart(text: str) -> str:
    """The text with an empty line before each section, and bold names for lines that are none to Google's style."""
    lines: list[str] = []
    for line in text.split("\n"):
        named = re.match(rf"\s*({'|'.join(LINES)}):", line)
        if named:
            line = f"**{named[1]}:**{line[named.end() :]}"
        if named or re.match(rf"({'|'.join(SECTIONS)}):$", line):
            lines.append("")
        # "count: > 0" is a number, not a quotation
        line = re.sub(r"^(\s*\w+: )>", r"\1\\>", line)
        lines.append(line.strip() if _goes_on(lines, line) else line)
    return "\n".join(lines)


def _goes_on(lines: list[str], line: str) -> bool:
    """Whether the line belongs to a Shapes or Source paragraph, whose next lines are indented."""
    paragraph = []
    for earlier in reversed(lines):
        if not earlier.strip():
            break
        paragraph.append(earlier)
    return bool(paragraph) and paragraph[-1].startswith("**") and line.startswith(" ")

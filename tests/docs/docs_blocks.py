# SPDX-License-Identifier: Apache-2.0
"""The code blocks of the documentation, and what comments above them say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>\w*) *(?P<rest>.*)$")
SHELL = ("console", "bash", "sh")
LANGUAGES = (*SHELL, "python", "diff", "yaml", "text")
SAID = ("not run", "setup", "output", "needs", "warns")
COMMAND = re.compile(r"(\$ )?(phalanx|torchrun|python -m phalanx|nohup phalanx|make|pip) ?")


@dataclass
class Block:
    """One fenced block: where it is, what it holds, and what is said above it in comments."""

    page: str
    line: int
    language: str
    text: str
    title: str = ""
    said: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """All pages with blocks to be tested, by their path in the repository."""
    return ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]


def blocks(page: str, text: str | None = None) -> list[Block]:
    """The blocks of a page, in order."""
    return list(_blocks(page, (ROOT / page).read_text("utf-8") if text is None else text))


def _blocks(page: str, text: str) -> Iterator[Block]:
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        opened = FENCE.match(lines[place])
        if opened is None:
            place += 1
            continue
        indent, fence = len(opened["indent"]), opened["fence"]
        ends = [i for i in range(place + 1, len(lines)) if lines[i].strip() == fence]
        assert ends, f"{page}:{place + 1}: a block without an end"
        inside = [line[indent:] for line in lines[place + 1 : ends[0]]]
        title = re.search(r'title="([^"]+)"', opened["rest"])
        language = opened["language"] or _guessed(inside)
        block = Block(page, place + 1, language, "\n".join(inside), title[1] if title else "")
        assert language in LANGUAGES, f"{block.place}: no language {language!r}; one of {', '.join(LANGUAGES)}"
        block.said = _said(block, lines[:place])
        yield block
        place = ends[0] + 1


def _guessed(inside: list[str]) -> str:
    """The language of a block that names none: that of commands, or nothing that we know."""
    return "sh" if inside and COMMAND.match(inside[0]) else ""


def _said(block: Block, above: list[str]) -> dict[str, str]:
    """The comments right above a block."""
    text = "\n".join(above).rstrip()
    said = {}
    while found := re.search(r"<!--\s*((?:(?!-->).)*?)\s*-->$", text, re.S):
        key, _, words = found[1].partition(":")
        assert key in SAID, f"{block.place}: {key!r} means nothing; say {', '.join(SAID)}"
        said[key] = words.strip()
        text = text[: found.start()].rstrip()
    assert said.get("not run", "a reason").count(" ") >= 1, f"{block.place}: say why it is not run"
    return said


def alike(expected: str, got: str, how: str) -> bool:
    """Whether two outputs have the same words, and numbers within a fifth or 0.05 of each other.

    A line or word `...` stands for anything.

    Args:
        how: what may differ from one machine to the next: "", "numbers vary", or "words vary" behind the first line.
    """
    assert how in ("", "numbers vary", "words vary"), f"an output is compared, or its numbers or words vary: {how!r}"
    if how == "words vary":
        return alike(expected.partition("\n")[0], got.partition("\n")[0], "numbers vary")
    if how:
        # a faster machine prints another unit, too
        expected, got = (re.sub(r"(?<=\d )[mu]s\b", "s", text) for text in (expected, got))
    pattern = r".*?".join(map(re.escape, re.split(r"\s*\.\.\.\s*", _words(expected))))
    found = re.fullmatch(pattern, _words(got), re.S)
    if not found or how or "..." in expected:
        return bool(found)
    pairs = zip(_numbers(expected), _numbers(got), strict=True)
    return all(abs(a - b) <= max(0.05, 0.2 * max(abs(a), abs(b))) for a, b in pairs)


NUMBER = re.compile(r"\b[0-9a-f]{16,}\b|(?<![A-Za-z_])\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?")


def _words(text: str) -> str:
    plain = re.sub(r"[-=\u2500-\u257f]{2,}", "-", NUMBER.sub("#", text))
    return " ".join(plain.split())


def _numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in NUMBER.findall(text) if not re.fullmatch("[0-9a-f]{16,}", n)]

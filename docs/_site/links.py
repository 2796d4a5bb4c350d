# SPDX-License-Identifier: Apache-2.0
"""Links that leave docs/ in the repository stay within the site: what they lead to is taken along."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

PLACE = "repository"  # folder of the site for what lies outside docs/
LINK = re.compile(r"(\]\()([^)#\s]*)(#[^)\s]*)?(\))")
ALWAYS = ("experiments/results/README.md", "CHANGELOG.md")  # pages of the navigation


def rewritten(markdown: str, uri: str) -> str:
    """The page at `uri` of the site with every link to a file of the repository as one within the site."""
    at = uri.removeprefix(f"{PLACE}/") if uri.startswith(f"{PLACE}/") else f"docs/{uri}"

    def within(target: str) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
        return posixpath.relpath(place(path), posixpath.dirname(uri) or ".")

    return _replaced(markdown, within)


def needed(root: Path) -> list[str]:
    """The files outside docs/ that pages link to, those of such pages included."""
    pages = [p.relative_to(root).as_posix() for p in sorted((root / "docs").rglob("*.md"))]
    found: dict[str, None] = dict.fromkeys(ALWAYS)
    waiting = [*pages, *ALWAYS]
    while waiting:
        page = waiting.pop()

        def note(target: str, page: str = page) -> str:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            if not path.startswith("docs/") and path not in found and (root / path).is_file():
                found[path] = None
                if path.endswith(".md"):
                    waiting.append(path)
            return target

        _replaced((root / page).read_text("utf-8"), note)
    return list(found)


def place(path: str) -> str:
    """Where a file of the repository stands in the site; a program becomes a page."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{PLACE}/{path}.md" if path.endswith(".py") else f"{PLACE}/{path}"


def as_page(path: str, program: str) -> str:
    """A page that shows a program."""
    return f"# {path}\n\n~~~~ python\n{program}~~~~\n"


def _replaced(markdown: str, by: Callable[[str], str]) -> str:
    """The text with the targets of its relative links replaced, outside of fenced code."""
    parts = re.split(r"(^(?:```|~~~).*?^(?:```|~~~~?)[ ]*$)", markdown, flags=re.M | re.S)
    return "".join(part if i % 2 else LINK.sub(lambda m: _link(m, by), part) for i, part in enumerate(parts))


def _link(match: re.Match[str], by: Callable[[str], str]) -> str:
    opened, target, anchor, closed = match.groups()
    if not target or re.match(r"[a-z]+:", target):
        return match[0]
    return f"{opened}{by(target)}{anchor or ''}{closed}"

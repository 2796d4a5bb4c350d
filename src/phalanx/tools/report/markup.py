# SPDX-License-Identifier: Apache-2.0
"""HTML and SVG from Python: whatever is not an element made here is text, and escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

VOID = ("br", "img", "meta")  # elements without an end


class Markup(str):
    """An element, or several."""


def tag(name: str, /, *inside: str | Iterable[str], **attributes: str | float) -> Markup:
    """An element with its attributes; "_" in a name becomes "-", and a "_" at its end is removed.

    >>> tag("p", "a < b", tag("b", "c"), class_="x")
    '<p class="x">a &lt; b<b>c</b></p>'
    """
    words = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items())
    content = "".join(map(_joined, inside))
    return Markup(f"<{name}{words}>" if name in VOID else f"<{name}{words}>{content}</{name}>")


def joined(parts: Iterable[str]) -> Markup:
    """Elements and texts one behind the other."""
    return Markup("".join(map(_joined, parts)))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """A table in a box that scrolls sideways; the first cell of each row is its heading.

    Args:
        rows: cells, of which those that are a td already stay as they are.
    """
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in header)))
    lines = [tag("tr", tag("th", row[0], scope="row"), *(_cell(cell) for cell in row[1:])) for row in rows]
    above = [tag("caption", caption)] if caption else []
    return tag("div", tag("table", *above, head, tag("tbody", *lines)), class_="wide", tabindex=0, role="region")


def _cell(cell: str) -> Markup:
    return cell if isinstance(cell, Markup) and cell.startswith("<td") else tag("td", cell)


def _joined(part: str | Iterable[str]) -> str:
    if isinstance(part, Markup):
        return part
    return escape(part) if isinstance(part, str) else "".join(map(_joined, part))


def document(title: str, *body: Markup, style: str = "") -> str:
    """A whole page that loads nothing and runs nothing, in the house's style.

    Args:
        style: rules of CSS behind those of the house.
    """
    house = files("phalanx.tools.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(house + style)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"

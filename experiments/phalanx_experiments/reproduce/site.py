# SPDX-License-Identifier: Apache-2.0
"""All results as a site of static pages: published beside measured, plots, and what differs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from phalanx.core.expression import require
from phalanx.tools.report.markup import Markup, document, table, tag
from phalanx.tools.report.sheet import Sheet
from phalanx_experiments.reproduce import verdict, words
from phalanx_experiments.reproduce.catalogue import CHAPTERS
from phalanx_experiments.reproduce.evidence import Evidence
from phalanx_experiments.reproduce.item import DATA, DIRECTION, GPU, NOT, PARTLY, REPRODUCED, SIZE, STATES, Item

INDEX = "index.html"
CLASSES = {REPRODUCED: "survives", NOT: "broken", GPU: "unfair", DATA: "unfair"}
CLASSES |= dict.fromkeys((SIZE, DIRECTION, PARTLY), "costly")
STYLE = """
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
a { color: var(--c0); }
nav { font-size: .9rem; margin: 8px 0; }
nav a { margin-right: 12px; white-space: nowrap; }
section { scroll-margin-top: 8px; }
td, thead th { min-width: 2.5rem; }
td:last-child { min-width: 9rem; }
section[id] tbody th { min-width: 8rem; }
@media (min-width: 600px) { tbody th { max-width: 26rem; } }
"""
TITLE = "Tables and figures of the dissertation, published beside measured"
HOW = (
    "Laptop scale means smaller networks and data than published, on two cores: the numbers themselves are comparable "
    "only where the table says so, orders and directions are comparable everywhere. n is the number of seeds; behind "
    "+- stands one standard deviation over them, or the published one. Reproduced is what holds in "
    "sign and in size, within a factor of 2, in at least 3 seeds whose 95 % interval leaves out zero."
)


def build(out: Path, items: Sequence[Item], evidence: Evidence) -> list[Path]:
    """Writes the site, with copies of the results' plots and numbers; returns the pages.

    Raises:
        ValueError: `out` holds something else than such a site.
    """
    free = not out.exists() or (out.is_dir() and (not any(out.iterdir()) or _ours(out / INDEX)))
    require(free, f"{out} holds something else than a site of ours; give --out an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    _copy(evidence.root, out / "results")
    pages = {INDEX: _index(items, evidence)}
    for chapter in CHAPTERS:
        pages[_page(chapter)] = _chapter(chapter, [item for item in items if item.chapter == chapter], evidence)
    for name, text in pages.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in pages]


def _ours(index: Path) -> bool:
    return index.exists() and TITLE in index.read_text(encoding="utf-8")


def _copy(root: Path | None, target: Path) -> None:
    """Copies plots and numbers; those of an earlier site are removed."""
    if target.exists():
        shutil.rmtree(target)
    for file in sorted(root.glob("*/*")) if root is not None else ():
        if file.suffix in (".png", ".json"):
            place = target / file.parent.name / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _page(chapter: int) -> str:
    return f"chapter-{chapter}.html"


def _index(items: Sequence[Item], evidence: Evidence) -> str:
    return document(TITLE, tag("h1", TITLE), *overview(items, evidence), style=STYLE)


def overview(items: Sequence[Item], evidence: Evidence) -> Iterator[Markup]:
    """The number of items in each state, then a table of the items of each chapter."""
    used = [verdict.state(item, evidence) for item in items]
    states = [
        (name, tag("td", str(used.count(name))), tag("td", meaning)) for name, meaning in STATES.items() if name in used
    ]
    if evidence.root is None:
        yield tag("p", "No committed results were at hand when this was built.", class_="warning")
    yield tag("p", f"{len(items)} tables and figures. ", HOW)
    yield table(("state", "items", "meaning"), states)
    for chapter, title in CHAPTERS.items():
        rows = [_line(item, evidence) for item in items if item.chapter == chapter]
        link = tag("a", f"Chapter {chapter}. {title}", href=_page(chapter))
        yield tag("section", tag("h2", link), table(("", "state, and what it shows"), rows))


def _line(item: Item, evidence: Evidence) -> tuple[str, ...]:
    link = tag("a", item.name, href=f"{_page(item.chapter)}#{item.key}")
    n, time = verdict.seeds(item, evidence), words.duration(item.minutes)
    more = ", ".join(part for part in (f"n = {n}" if n else "", time) if part)
    return link, tag("td", _state(item, evidence), " ", tag("small", more), tag("br"), item.title)


def _state(item: Item, evidence: Evidence) -> Markup:
    state = verdict.state(item, evidence)
    return tag("span", state, class_=f"badge {CLASSES.get(state, 'unknown')}")


def _chapter(chapter: int, items: Sequence[Item], evidence: Evidence) -> str:
    title = f"Chapter {chapter}. {CHAPTERS[chapter]}"
    ways = [tag("a", "All chapters", href=INDEX)]
    ways += [tag("a", f"Chapter {other}", href=_page(other)) for other in CHAPTERS if other != chapter]
    inside = [tag("a", item.name, href=f"#{item.key}") for item in items]
    return document(
        title,
        tag("nav", _spaced(ways)),
        tag("h1", title),
        tag("nav", _spaced(inside)),
        *(tag("section", tag("h2", heading(item)), *content(item, evidence), id=item.key) for item in items),
        style=STYLE,
    )


def _spaced(links: Sequence[Markup]) -> Markup:
    return Markup(" ".join(links))


def heading(item: Item) -> str:
    """The item's name and title."""
    return f"{item.name}: {item.title}"


def content(item: Item, evidence: Evidence) -> Iterator[Markup]:
    """What a chapter's page says about an item, below its heading."""
    yield tag("p", _state(item, evidence), " ", verdict.outcome(verdict.judged(item, evidence)))
    for sheet in (words.comparison(item, evidence), words.verdicts(item, evidence)):
        if sheet.rows:
            yield _table(sheet)
    for image in item.images:
        if evidence.root is not None and (evidence.root / image).exists():
            yield tag("img", src=f"results/{image}", alt=f"{item.name}, measured: {item.title}", loading="lazy")
    lacking = words.missing(item, evidence)
    if lacking:
        yield tag("p", lacking, class_="note")
    yield tag("p", *([tag("b", "What differs. ")] if item.rows or item.parts else []), *_code(item.why))
    yield tag("p", *_again(item, evidence), class_="note")


def _code(text: str) -> list[str]:
    """The text as HTML, with words between backticks as code."""
    return [tag("code", part) if i % 2 else part for i, part in enumerate(text.split("`"))]


def _table(sheet: Sheet) -> Markup:
    return table(sheet.header, sheet.words())


def _again(item: Item, evidence: Evidence) -> Iterator[str]:
    """The command that makes an item again, and links to its numbers."""
    if item.again:
        time = words.duration(item.minutes)
        yield "Again: "
        yield tag("code", item.again)
        yield f", about {time} a seed on two cores. " if time else ". "
    if item.command and item.command != item.again:
        yield "Numbers that the recipe does not have come from "
        yield tag("code", item.command)
        yield ". "
    files = dict.fromkeys(f"{part.recipe}/results.json" for part in item.parts)
    for name in files:
        if evidence.root is not None and (evidence.root / name).exists():
            yield tag("a", name, href=f"results/{name}")
            yield " "

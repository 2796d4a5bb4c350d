# SPDX-License-Identifier: Apache-2.0
"""The site of all results as pages of the documentation, in its theme."""

from __future__ import annotations

from pathlib import Path

from phalanx.tools.report.markup import joined, tag
from phalanx_experiments.reproduce import site, verdict
from phalanx_experiments.reproduce.catalogue import CHAPTERS, items
from phalanx_experiments.reproduce.evidence import Evidence
from phalanx_experiments.reproduce.item import STATES

PLACE = "reproduced"
HERE = "<!-- site: chapters -->"


def plots(results: Path, out: Path) -> list[Path]:
    """Writes the site of results into a folder; its plots and numbers, without its pages."""
    site.build(out, items(), Evidence(results))
    return sorted(file for file in (out / "results").rglob("*") if file.is_file())


def pages(results: Path) -> list[tuple[str, str]]:
    """Address and text of a page for each chapter, and of one for all."""
    evidence, known = Evidence(results), items()
    made = [(f"{PLACE}/index.md", f"# {site.TITLE}\n\n{_block(*site.overview(known, evidence))}\n")]
    for chapter, title in CHAPTERS.items():
        parts = [f"# Chapter {chapter}. {title}", "[All chapters](index.md)"]
        for item in known:
            if item.chapter == chapter:
                parts += [f"## {site.heading(item)} {{ #{item.key} }}", _block(*site.content(item, evidence))]
        made.append((f"{PLACE}/chapter-{chapter}.md", "\n\n".join(parts) + "\n"))
    return made


def _block(*elements: str) -> str:
    """The elements as one block of HTML, which Markdown leaves as it is."""
    return tag("div", joined(elements), class_=PLACE)


def inserted(markdown: str, results: Path) -> str:
    """The text with a table of the chapters where it says so."""
    return markdown.replace(HERE, _table(Evidence(results))) if HERE in markdown else markdown


def _table(evidence: Evidence) -> str:
    known = items()
    states = {item.key: verdict.state(item, evidence) for item in known}
    used = [state for state in STATES if state in states.values()]
    rows = [["chapter", *used], ["---"] * (1 + len(used))]
    for chapter, title in CHAPTERS.items():
        link = f"[Chapter {chapter}. {title}]({PLACE}/chapter-{chapter}.md)"
        of_chapter = [states[item.key] for item in known if item.chapter == chapter]
        rows.append([link, *(str(of_chapter.count(state)) for state in used)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**[All chapters on one page]({PLACE}/index.md)**\n\n{table}"

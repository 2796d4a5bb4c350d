# SPDX-License-Identifier: Apache-2.0
"""The site of all results inside the documentation."""

from __future__ import annotations

from pathlib import Path

from phalanx_experiments.reproduce import site, verdict
from phalanx_experiments.reproduce.catalogue import CHAPTERS, items
from phalanx_experiments.reproduce.evidence import Evidence
from phalanx_experiments.reproduce.item import STATES

PLACE = "reproduced"
HERE = "<!-- site: chapters -->"
BACK = '<nav><a href="../results.html">Documentation</a></nav>'


def build(results: Path, out: Path) -> list[Path]:
    """Writes the site of results into a folder; all its files."""
    for page in site.build(out, items(), Evidence(results)):
        text = page.read_text("utf-8")
        page.write_text(text.replace("<main>", f"<main>{BACK}", 1), "utf-8")
    return sorted(file for file in out.rglob("*") if file.is_file())


def inserted(markdown: str, results: Path) -> str:
    """The text with a table of the chapters where it says so."""
    return markdown.replace(HERE, _table(Evidence(results))) if HERE in markdown else markdown


def _table(evidence: Evidence) -> str:
    known = items()
    states = {item.key: verdict.state(item, evidence) for item in known}
    used = [state for state in STATES if state in states.values()]
    rows = [["chapter", *used], ["---"] * (1 + len(used))]
    for chapter, title in CHAPTERS.items():
        link = f"[Chapter {chapter}. {title}]({PLACE}/chapter-{chapter}.html)"
        mine = [states[item.key] for item in known if item.chapter == chapter]
        rows.append([link, *(str(mine.count(state)) for state in used)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"**[All chapters on one page]({PLACE}/index.html)**\n\n{table}"

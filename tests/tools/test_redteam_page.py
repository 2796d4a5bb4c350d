# SPDX-License-Identifier: Apache-2.0
"""The report of a red team study."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px
from phalanx.tools.redteam.findings import RedTeamRequest
from phalanx.tools.redteam.page import page
from phalanx.tools.report.markup import VOID, table, tag
from tests.tools.made_grid import RULES, findings, lines, red_team_folder, run

HOSTILE = "<script>alert('x')</script> & \"more\""
GRID = {
    f"{attack}: {name}": run(rule, attack) for name, rule in RULES.items() for attack in ("none", "PGD", "adaptive")
}


class Reader(HTMLParser):
    """Reads a page strictly: every element that begins also ends, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.met.add(tag)
        assert len({name for name, _ in attrs}) == len(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


def logged() -> dict[str, list]:
    gains = {"FedAvg": 0.7, "Krum": 0.02, "median": 0.05}
    said = {}
    for label in GRID:
        attack, _, rule = label.partition(": ")
        more = {"chosen": [3]} if rule == "Krum" else {}
        success = 0.1 + (gains[rule] if attack != "none" else 0)
        said[label] = lines(success, accuracy=0.8 if rule == "Krum" else 0.9, **more)
    return said


def test_the_report_is_one_page_that_loads_nothing(tmp_path: Path) -> None:
    made = red_team_folder(
        tmp_path, GRID, logged(), RedTeamRequest("made", policies=("excess > 0.1", "main_accuracy < 0.5"))
    )
    made.write()
    text = (tmp_path / "report.html").read_text()
    read = Reader(text)
    assert {"h1", "table", "svg", "polyline", "style"} <= read.met
    assert not read.met & {"script", "link", "img", "iframe", "object", "embed", "a"}
    assert not re.search(r"https?:|//\w|src=|href=|@import|url\(", text)
    for words in (
        "3 rules under attack",
        "9 of 9 runs have ended",
        "One seed (0)",
        "Threat model",
        "median (0.0 points of main accuracy at most)",
        "knows the rule",
        "in one round of 2",
        "0 % of",
        f"phalanx redteam --resume {tmp_path}",
    ):
        assert words in read.words, words
    assert (tmp_path / "plot.png").exists() and (tmp_path / "verdicts.json").exists()


def test_the_legend_has_the_lines_of_the_curves(tmp_path: Path) -> None:
    rules = ("FedAvg", "Krum")
    attacks = ("none", *(f"attack {i}" for i in range(9)))  # nine: the colours begin again, dashed
    runs = {f"{a}: {r}": run(px.aggregators.mean(), "none" if a == "none" else "PGD") for a in attacks for r in rules}
    text = page(findings(tmp_path, runs, {label: lines(0.1) for label in runs}))
    legend = re.search(r'<ul class="legend">(.*?)</ul>', text)
    assert legend is not None
    styles = re.findall(r'<line [^>]*class="line ([^"]+)"[^>]*></line></svg>([^<]+)<', legend[1])
    assert len(styles) == 10 and ("quiet", "no attack") in styles and ("c0 dashed", "attack 8") in styles
    drawn = re.findall(r'<polyline points="[^"]*" class="line ([^"]+)"><title>([^<]+)<', text)
    assert {(style, "no attack" if name == "none" else name) for style, name in drawn} == set(styles)


def test_names_are_text(tmp_path: Path) -> None:
    runs = {f"none: {HOSTILE}": run(px.aggregators.mean()), f"{HOSTILE}: {HOSTILE}": run(px.aggregators.mean(), "PGD")}
    request = RedTeamRequest(HOSTILE, policies=("excess > 0.1",), notes=(HOSTILE,))
    said = dict(zip(runs, (lines(0.1), lines(0.9)), strict=True))
    text = page(findings(tmp_path, runs, said, request=request))
    read = Reader(text)
    assert "<script" not in text and HOSTILE in read.words


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_an_unfinished_grid_has_a_report_that_says_so(tmp_path: Path, share: float) -> None:
    said = dict(list(logged().items())[: int(share * len(GRID))])
    found = red_team_folder(tmp_path, GRID, said, request=RedTeamRequest("made", policies=("excess > 0.1",))).write()
    read = Reader(page(found))
    assert "Not finished." in read.words and "not known" in read.words
    assert all(label in read.words for label in found.missing)
    assert found.exit_code == (1 if share else 3)


def test_several_seeds_have_their_spread(tmp_path: Path) -> None:
    runs = {f"{a}: mean, seed {s}": run(px.aggregators.mean(), a, s) for s in (3, 4) for a in ("none", "PGD")}
    said = {label: lines(0.1 if "none" in label else 0.5 + 0.1 * runs[label].seed) for label in runs}
    text = page(findings(tmp_path, runs, said))
    assert "2 seeds (3, 4)" in text and "+75.0 (+70.0 to +80.0) n=2" in text and "polygon" in text


@given(st.text(), st.text())
def test_whatever_is_written_comes_out_as_text(words: str, value: str) -> None:
    made = tag("p", words, tag("b", words), title=value)
    read = Reader(made)
    # line ends are the parser's own affair
    assert read.words.replace("\r", "").replace("\0", "") == (words * 2).replace("\r", "").replace("\0", "")
    assert "<" not in words or "&lt;" in made
    assert Reader(table((words, value), [(words, value)], words)).open == []

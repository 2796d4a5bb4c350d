# SPDX-License-Identifier: Apache-2.0
"""What the documentation's site is made of, without building it."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

import phalanx
from tests.docs.docs_blocks import ROOT


def part(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_site_{name}", ROOT / "docs" / "_site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_public_name_once() -> None:
    text = "\n".join(text for _, text in part("api").pages())
    headings = re.findall(r"^## \w+ \{ #(phalanx\.[\w.]+) \}", text, re.M)
    assert len(headings) == len(set(headings))
    there = [resolve_name(name) for name in (heading.replace(".", ":", 1) for heading in headings)]
    spaces = [phalanx, *(value for name in phalanx.__all__ if hasattr(value := getattr(phalanx, name), "__all__"))]
    for space in spaces:
        for name in space.__all__:
            value = getattr(space, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                assert there.count(value) == 1, f"{space.__name__}.{name}"
    assert "krum(f: int)" in text and "class Stage(" in text


def test_the_page_on_commands_has_every_command() -> None:
    ((_, text),) = part("commands").pages()
    for name in ("run", "reproduce", "redteam", "list", "show", "compare", "probe", "advise", "factorize", "doctor"):
        assert f"\n## phalanx {name}\n" in text
    assert "--resume PATH" in text and "phalanx run quickstart" in text


def test_links_out_of_the_documentation_stay_in_the_site() -> None:
    links = part("links")
    text = "[a](../experiments/results/README.md#x) [b](pattern.md) [c](https://a.b/c.md) [d](#e)\n"
    text += "```\n[f](../src/g.py)\n```\n"
    became = links.rewritten(text, "ddp.md")
    assert (
        "[a](repository/experiments/results/README.md#x)" in became
        and "[b](pattern.md) [c](https://a.b/c.md) [d](#e)" in became
    )
    assert "[f](../src/g.py)" in became
    assert (
        links.rewritten("[a](../../experiments/results/README.md)", "howto/x.md")
        == "[a](../repository/experiments/results/README.md)"
    )
    assert (
        links.rewritten("[a](../../docs/draco.md)", "repository/experiments/results/README.md")
        == "[a](../../../draco.md)"
    )
    assert links.rewritten("[a](../examples/train.py)", "x.md") == "[a](repository/examples/train.py.md)"


def test_all_links_of_the_repository_lead_somewhere() -> None:
    links = part("links")
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "experiments" / "results" / "README.md", ROOT / "README.md"]
    for page in pages:
        for _, target, _, _ in links.LINK.findall(
            re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        ):
            if target and not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target} does not exist"


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">1</a><img src="c.png"><h1 id="here"></h1>')
    (tmp_path / "b.html").write_text('<a href="a.html#here">2</a><a href="https://example.org">3</a>')
    found = part("check").broken(tmp_path)
    assert found == ["a.html: b.html#there has no such place", "a.html: c.png does not exist"]


def test_what_a_page_loads_from_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<script src="https://example.org/x.js"></script><a href="https://example.org">1</a>'
    )
    (tmp_path / "b.js").write_text('load("https://unpkg.com/polyfill")')
    (tmp_path / "c.css").write_text('@import "https://example.org/c.css"; p { background: url(//example.org/d.png) }')
    (tmp_path / "d.html").write_text("<style>p { background: url('https://example.org/e.png') }</style>")
    found = part("check").broken(tmp_path)
    assert found == [
        "a.html: loads https://example.org/x.js from another host",
        "d.html: loads https://example.org/e.png from another host",
        "b.js: loads https://unpkg.com/polyfill from another host",
        "c.css: loads https://example.org/c.css from another host",
        "c.css: loads //example.org/d.png from another host",
    ]


def test_a_long_formula_scrolls_in_a_box() -> None:
    pytest.importorskip("latex2mathml")
    formulas = part("formulas")

    def html(text: str) -> str:
        return re.sub(formulas.MARK, formulas.drawn, text, flags=re.S)

    assert html('<div class="arithmatex">\\[a + b\\]</div>').startswith('<div class="formula"><math')
    assert html('<span class="arithmatex">\\(a\\)</span>').startswith("<math")
    # the bar is below the text, and the box is what scrolls
    style = (ROOT / "docs" / "extra.css").read_text("utf-8")
    assert re.search(r"\.formula \{[^}]*padding: [^}]*\.8rem; overflow-x: auto", style)


def test_chapters_are_pages_of_the_theme() -> None:
    pytest.importorskip("phalanx_experiments")
    from phalanx_experiments.reproduce.catalogue import CHAPTERS, items

    pages = dict(part("chapters").pages(ROOT / "experiments" / "results"))
    assert set(pages) == {"reproduced/index.md", *(f"reproduced/chapter-{chapter}.md" for chapter in CHAPTERS)}
    text = "\n".join(pages.values())
    assert [text.count(f"{{ #{item.key} }}") for item in items()] == [1] * len(items())
    assert "<!doctype" not in text and "<style" not in text
    # Markdown leaves HTML alone that stands on one line
    assert all(line.endswith("</div>") for line in text.split("\n") if line.startswith("<div"))
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert all(page in settings for page in pages)


def test_scripts_of_the_theme_load_nothing_from_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    cleaned = part("hooks").without_foreign_scripts(
        'f("https://unpkg.com/a");g("https://b.org/c.js");h("https://b.org/d")'
    )
    assert cleaned == 'f("data:text/javascript,");g("data:text/javascript,");h("https://b.org/d")'


def test_docstrings_become_sections() -> None:
    pytest.importorskip("griffe")
    text = part("docstrings").apart(inspect.getdoc(phalanx.aggregators.krum) or "")
    assert "\n\n**Shapes:** (n, d) -> (1, d)" in text and "\n\nArgs:\n" in text and "\n\n**Source:** Blanchard" in text

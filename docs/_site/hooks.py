# SPDX-License-Identifier: Apache-2.0
"""What MkDocs calls: generated pages, links out of docs/, and formulas."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import api
import chapters
import commands
import formulas
import links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_folders: list[tempfile.TemporaryDirectory[str]] = []  # of the results' site, until MkDocs ends


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the reference, the site of results, and what the pages link to outside docs/."""
    root = _root(config)
    _folders.append(tempfile.TemporaryDirectory())
    folder, results = Path(_folders[-1].name), root / "experiments" / "results"
    for file in chapters.plots(results, folder):
        files.append(File.generated(config, f"{chapters.PLACE}/{file.relative_to(folder)}", abs_src_path=str(file)))
    for name, text in (*commands.pages(), *api.pages(), *chapters.pages(results)):
        files.append(File.generated(config, name, content=text))
    for path in links.needed(root):
        files.append(_file(root, path, config))
    return files


def _file(root: Path, path: str, config: MkDocsConfig) -> File:
    if path.endswith(".py"):
        return File.generated(config, links.place(path), content=links.as_page(path, (root / path).read_text("utf-8")))
    return File.generated(config, links.place(path), abs_src_path=str(root / path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links into the site, and the list of chapters where it has its place."""
    return links.rewritten(chapters.inserted(markdown, _root(config) / "experiments" / "results"), page.file.src_uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with formulas that a browser draws by itself."""
    return re.sub(formulas.MARK, formulas.drawn, html, flags=re.S)


def on_post_build(config: MkDocsConfig) -> None:
    """Leaves no address of a foreign host in the theme's scripts, which would fetch programs there for old browsers."""
    for script in Path(config.site_dir).glob("assets/javascripts/*.js"):
        text = script.read_text("utf-8")
        script.write_text(without_foreign_scripts(text), "utf-8")


def without_foreign_scripts(program: str) -> str:
    """The program with an empty script in place of each that it would load from another host."""
    return re.sub(
        r'"https?://[^"]+\.js"|"https?://(?:unpkg\.com|cdn\.[^"/]+)/[^"]*"', '"data:text/javascript,"', program
    )


def on_shutdown() -> None:
    """Removes what was copied."""
    for folder in _folders:
        folder.cleanup()


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent

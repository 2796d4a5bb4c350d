# SPDX-License-Identifier: Apache-2.0
"""Follows every link, anchor and image of a built site; ends with 1 and a list if some lead nowhere.

A page may link to other hosts, but loads nothing from them: no script, style, font, image or frame.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

LOADED_BY_SCRIPT = re.compile(r'"(https?://[^"]+\.js|https?://unpkg\.com/[^"]+)"')
LOADED_BY_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors = {"", "__top"}
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "a":
            self.loaded += [value for name, value in attrs if name in ("href", "src") and value]
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken(site: Path) -> list[str]:
    """A sentence for each link within the site that leads nowhere, or out of the site's folder."""
    pages = {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    found = []
    for path, page in pages.items():
        foreign = [link for link in page.loaded if link.startswith(("http:", "https:", "//"))]
        foreign += LOADED_BY_STYLE.findall(path.read_text("utf-8"))
        found += [f"{path.relative_to(site)}: loads {link} from another host" for link in dict.fromkeys(foreign)]
        for link in dict.fromkeys(page.links):
            if link.startswith(("http:", "https:", "//", "mailto:", "data:", "javascript:")):
                continue
            address, anchor = urldefrag(link)
            target = (path.parent / unquote(address)).resolve() if address else path
            target = target / "index.html" if target.is_dir() else target
            here = path.relative_to(site)
            if not target.exists() or not target.is_relative_to(site):
                found.append(f"{here}: {link} does not exist")
            elif target in pages and unquote(anchor) not in pages[target].anchors:
                found.append(f"{here}: {link} has no such place")
    for pattern, by in (("*.js", LOADED_BY_SCRIPT), ("*.css", LOADED_BY_STYLE)):
        for file in sorted(site.rglob(pattern)):
            for address in by.findall(file.read_text("utf-8")):
                found.append(f"{file.relative_to(site)}: loads {address} from another host")
    return found


def main() -> None:
    """Checks the folder that is given."""
    site = Path(sys.argv[1]).resolve()
    found = broken(site)
    print("\n".join(found) or f"{site}: {len(list(site.rglob('*.html')))} pages, every link leads somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Formulas as MathML, made when the site is built: nothing has to be fetched to read them."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

MARK = r'<(span|div) class="arithmatex">(.*?)</\1>'


def drawn(match: re.Match[str]) -> str:
    """One formula, between \\( and \\) or \\[ and \\]."""
    text = html.unescape(match[2]).strip()
    if text.startswith("\\("):
        return convert(text[2:-2].strip())
    # a long formula scrolls in a box, whose scroll bar is below the text
    return f'<div class="formula">{convert(text[2:-2].strip(), display="block")}</div>'

# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG within a page, in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from phalanx.tools.report.markup import Markup, tag

WIDTH, HEIGHT = 340, 200  # of a picture, in its own units
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 30
COLOURS = 8  # classes c0 to c7 of the page; more lines begin again, dashed


@dataclass(frozen=True)
class Line:
    """A rate by round.

    Args:
        points: (round, mean, least, greatest) over the seeds, rates in [0, 1].
        style: a class of the page; "quiet" is grey.
    """

    name: str
    points: Sequence[tuple[int, float, float, float]]
    style: str


def style(place: int) -> str:
    """The class of the line in this place."""
    return f"c{place % COLOURS}" + (" dashed" if place >= COLOURS else "")


def key(line_style: str) -> Markup:
    """A short piece of a line in the same style, for the legend."""
    piece = tag("line", x1=0, x2=24, y1=4, y2=4, class_=f"line {line_style}")
    return tag("svg", piece, viewBox="0 0 24 8", class_="key", aria_hidden="true")


def panel(name: str, lines: Sequence[Line]) -> Markup:
    """Lines over the rounds, with the range over the seeds behind each.

    Args:
        name: of the picture, for those who do not see it.
    """
    last = max((index for line in lines for index, *_ in line.points), default=1)

    def place(index: int, rate: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * index / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - rate)
        return f"{x:.1f},{y:.1f}"

    grid = []
    for rate in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x0, y), (x1, _) = (place(index, rate).split(",") for index in (0, last))
        grid.append(tag("line", x1=x0, x2=x1, y1=y, y2=y, class_="grid"))
        grid.append(tag("text", f"{100 * rate:.0f}", x=LEFT - 5, y=float(y) + 3.5, text_anchor="end"))
    for index in dict.fromkeys((0, last // 2, last)):
        x = place(index, 0).split(",")[0]
        grid.append(tag("text", str(index), x=x, y=HEIGHT - BOTTOM + 14, text_anchor="middle"))
    grid.append(tag("text", "round", x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 3, text_anchor="middle"))
    drawn = []
    for line in lines:
        band = [place(index, high) for index, _, _, high in line.points]
        band += [place(index, low) for index, _, low, _ in reversed(line.points)]
        if any(low < high for _, _, low, high in line.points):
            drawn.append(tag("polygon", points=" ".join(band), class_=f"band {line.style}"))
        points = " ".join(place(index, rate) for index, rate, _, _ in line.points)
        drawn.append(tag("polyline", tag("title", line.name), points=points, class_=f"line {line.style}"))
    return tag("svg", *grid, *drawn, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=name)

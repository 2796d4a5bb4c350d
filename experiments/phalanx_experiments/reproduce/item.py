# SPDX-License-Identifier: Apache-2.0
"""A table or figure of the dissertation: its published numbers, and where the measured numbers are found."""

from __future__ import annotations

from dataclasses import dataclass

from phalanx.tools.runner.recipe import SCALES, find, recipes
from phalanx_experiments.reproduce.places import Place

REPRODUCED, PARTLY, NOT, UNRUN = "reproduced", "partly", "not reproduced", "not run"
SIZE, DIRECTION, UNCOMPARED = "same sign and size", "same direction", "not compared"
GPU, DATA, NONE = "needs a GPU", "needs data", "no experiment"
STATES = {
    REPRODUCED: "every claim holds in sign and size, within a factor of 2, in at least 3 seeds",
    SIZE: "every claim holds in sign and size, some in fewer than 3 seeds",
    DIRECTION: "every claim holds in sign; some size differs, or was published in a figure only",
    PARTLY: "some claims hold, or it was run in part",
    NOT: "it was run, and shows something else",
    UNCOMPARED: "it was run; no number or order of it was published that could be compared",
    UNRUN: "a recipe or a benchmark has it; there is no committed result",
    GPU: "there is a recipe; it takes days without a GPU",
    DATA: "its data are not at hand: not public, to be fetched by hand, or without a loader here",
    NONE: "a drawing, or a list of settings",
}


@dataclass(frozen=True)
class Row:
    """One number, published and measured.

    Args:
        published: None where it stands in a figure only.
        spread: standard deviation as published.
        group: rows of one group and unit are compared with each other; None compares with none.
        same: the experiment has its real size, so that the numbers themselves are comparable, not their order only.
    """

    what: str
    published: float | None
    measured: Place
    unit: str = "%"
    spread: float | None = None
    group: str | None = ""
    same: bool = False


@dataclass(frozen=True)
class Claim:
    """A statement of a figure or the text beyond the rows: one number is above another.

    Args:
        below: a place, or a constant.
        published: the gap as published; None where it stands in a figure only.
    """

    words: str
    above: Place
    below: Place | float = 0.0
    unit: str = "points"
    published: float | None = None


@dataclass(frozen=True)
class Part:
    """A part of the runs of a recipe.

    Args:
        having: words of which a label holds one; all labels when empty.
        minutes: of one seed at laptop scale on two cores, those of the committed run or estimated from like runs; None
            if not known.
        timed: seconds are what it measures, so that nothing else may run beside it.
    """

    recipe: str
    minutes: float | None = None
    having: tuple[str, ...] = ()
    timed: bool = False

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales of the recipe; none if this version has no such recipe."""
        return next((recipe.scales for recipe in recipes() if recipe.name == self.recipe), ())

    def labels(self, scale: str) -> list[str]:
        """The labels of its runs at a scale."""
        labels = find(self.recipe).jobs(scale)
        return [label for label in labels if not self.having or any(word in label for word in self.having)]


@dataclass(frozen=True)
class Item:
    """A table or a figure of the dissertation.

    Args:
        key: such as "table-5.1".
        title: what it shows, in words of our own.
        state: one of STATES; of what was run, the best that the numbers may make of it: "reproduced" where all that
            was published was run, else "partly".
        why: what differs from what was published, and why.
        parts: the runs that make it.
        command: what makes it where no recipe does, such as a benchmark.
        plots: images in the folder of results; those of the parts' recipes when None.
    """

    key: str
    title: str
    state: str
    why: str
    parts: tuple[Part, ...] = ()
    rows: tuple[Row, ...] = ()
    claims: tuple[Claim, ...] = ()
    command: str = ""
    plots: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        assert self.state in STATES, self.state
        assert self.why.endswith("."), self.key

    @property
    def name(self) -> str:
        """The name in a text, such as "Table 5.1"."""
        return self.key.replace("-", " ").capitalize()

    @property
    def chapter(self) -> int:
        """The number of the chapter, such as 5 for table-5.1."""
        return self.order[0]

    @property
    def order(self) -> tuple[int, int, str]:
        """Chapter, number and kind, as a key to sort by."""
        kind, _, number = self.key.partition("-")
        chapter, _, rest = number.partition(".")
        return int(chapter), int(rest), kind

    @property
    def minutes(self) -> float | None:
        """Minutes of one seed at laptop scale; None unless they are known for all parts."""
        known = [part.minutes for part in self.parts if part.minutes is not None]
        return sum(known) if known and len(known) == len(self.parts) else None

    @property
    def places(self) -> list[Place]:
        """The places of all its measured numbers."""
        claimed = [place for claim in self.claims for place in (claim.above, claim.below)]
        return [row.measured for row in self.rows] + [place for place in claimed if not isinstance(place, int | float)]

    @property
    def images(self) -> tuple[str, ...]:
        """Images in the folder of results that show it."""
        return tuple(f"{part.recipe}/plot.png" for part in self.parts) if self.plots is None else self.plots

    @property
    def scales(self) -> tuple[str, ...]:
        """The scales that all its recipes have; only the paper's for what needs a GPU."""
        shared = [scale for scale in SCALES if self.parts and all(scale in part.scales for part in self.parts)]
        return tuple(scale for scale in shared if scale == "paper" or self.state != GPU)

    @property
    def usual(self) -> str:
        """The default scale; empty if no recipe runs it."""
        return "laptop" if "laptop" in self.scales else "".join(self.scales[-1:])

    @property
    def again(self) -> str:
        """The command that runs it again."""
        return f"phalanx reproduce {self.key} --scale {self.usual}" if self.usual else self.command

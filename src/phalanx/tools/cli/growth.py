# SPDX-License-Identifier: Apache-2.0
"""phalanx advise --scale-to: what becomes of the steps when the workers become more?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from phalanx.tools.cli import asked
from phalanx.tools.cli.common import print_json

if TYPE_CHECKING:
    from phalanx.tools.advisor.growth import Growth
    from phalanx.tools.advisor.link import Link
    from phalanx.tools.advisor.probe import Probe

NOTE = (
    "Every worker keeps its share of the batch, has a machine and a line of its own, and is as fast as the others; "
    "what is done with n payloads goes on along the line through the numbers of workers at which it was measured."
)


def check_options(scale_to: int | None, simulated: bool, stragglers: float | None, plot: Path | None) -> None:
    """Raises ValueError for an option that another one has to go with."""
    for option, given in (("--simulate", simulated), ("--plot", plot is not None)):
        if given and scale_to is None:
            raise ValueError(f"{option} belongs to growing numbers of workers; add --scale-to N, such as 1024")
    if stragglers is not None and not simulated:
        raise ValueError("--stragglers are simulated, as no formula has them; add --simulate")


def check_alone(scale_to: int | None, server: bool) -> None:
    """Raises ValueError where runs are to be compared with predictions for something else."""
    for option, given in (("--scale-to", scale_to is not None), ("--server", server)):
        if given:
            raise ValueError(f"--check compares runs of processes that gather; leave out {option}")


def growth(
    found: Probe,
    link: Link,
    ends: tuple[int, int],
    work_s: float | None,
    stragglers: float | None,
    plot: Path | None,
    left: Sequence[str],
    measured: bool,
    as_json: bool,
) -> None:
    """Prints the steps of every scheme by number of workers, and which scheme is best where.

    Args:
        ends: the first and the last number of workers.
        stragglers: of `grow`.
        left: schemes that a server cannot take.
        measured: the link is the probe's.
    """
    from phalanx.tools.advisor.growth import doublings, grow
    from phalanx.tools.report import tables

    grown = grow(found, link, doublings(*ends), work_s, stragglers)
    sentence = sentence_of(grown)
    if plot is not None:
        from phalanx.tools.report.growth import plot_growth

        plot_growth(grown, f"{found.run.model!r}: predicted steps", found.batch, plot)
    if as_json:
        print_json(
            {
                "link": {kind: vars(link.line(kind)) for kind in ("gather", "reduce")},
                "measured_link": measured,
                "run": repr(found.run),
                "batch": found.batch,
                "left_out": list(left),
                "stragglers": stragglers,
                "scales": grown.to_json(),
                "sentence": sentence,
                "note": NOTE,
            }
        )
        return
    typer.echo(asked.words(found, link, measured))
    head = ("scheme", *(f">{n}" for n in grown.workers), f">rows at {ends[1]}")
    rows = []
    for j, line in enumerate(grown.advices[0].lines):
        steps = [tables.seconds(advice.lines[j].step.seconds) for advice in grown.advices]
        rows.append([line.cost.scheme, *steps, tables.size(grown.rows_bytes[-1][j])])
        if grown.simulated is not None:
            rows.append(["  simulated", *(tables.seconds(column[j]) for column in grown.simulated), ""])
    tables.console().print(tables.plain_table("seconds of a step, by number of workers", head, rows))
    where = f"\nplot    {plot}" if plot is not None else ""
    typer.echo(f"\n{sentence}\n{NOTE}{left_words(left)}{where}")


def sentence_of(grown: Growth) -> str:
    """Which scheme is best at how many workers."""
    from phalanx.tools.advisor.quality import PLAIN

    parts = []
    for first, last, scheme in grown.best:
        name = "the uncompressed all-reduce" if scheme == PLAIN else scheme
        parts.append(f"{name} at {first}" if first == last else f"{name} from {first} to {last}")
    return f"Best: {'; '.join(parts)} workers."


def left_words(left: Sequence[str]) -> str:
    """What is missing in a table of a server's schemes, as a last line."""
    return f"\nA server cannot take, and so not in the table: {', '.join(left)}." if left else ""

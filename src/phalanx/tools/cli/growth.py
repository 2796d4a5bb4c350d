# SPDX-License-Identifier: Apache-2.0
"""phalanx advise --scale-to: predicts step times for growing numbers of workers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from phalanx.tools.cli import probe_options
from phalanx.tools.cli.common import print_json

if TYPE_CHECKING:
    from phalanx.tools.advisor.growth import Growth
    from phalanx.tools.advisor.link import Link
    from phalanx.tools.advisor.probe import Probe

NOTE = (
    "Every worker keeps its share of the batch, has a machine and a link of its own, and is as fast as the others. "
    "The time to process n payloads is extrapolated linearly from the numbers of workers at which it was measured."
)


def check_options(scale_to: int | None, simulated: bool, stragglers: float | None, plot: Path | None) -> None:
    """Raises ValueError for an option that needs another one."""
    for option, given in (("--simulate", simulated), ("--plot", plot is not None)):
        if given and scale_to is None:
            raise ValueError(f"{option} needs growing numbers of workers; add --scale-to N, such as 1024")
    if stragglers is not None and not simulated:
        raise ValueError("--stragglers needs a simulation, as no formula has stragglers; add --simulate")


def check_alone(scale_to: int | None, server: bool) -> None:
    """Raises ValueError for options that --check cannot compare with runs."""
    for option, given in (("--scale-to", scale_to is not None), ("--server", server)):
        if given:
            raise ValueError(f"--check compares runs whose processes gather the rows; leave out {option}")


def growth(
    probe: Probe,
    link: Link,
    ends: tuple[int, int],
    work_s: float | None,
    stragglers: float | None,
    plot: Path | None,
    left_out: Sequence[str],
    measured: bool,
    as_json: bool,
) -> None:
    """Prints the step time of every scheme for each number of workers, and the best scheme for each.

    Args:
        ends: the first and the last number of workers.
        stragglers: as in `grow`.
        left_out: schemes that do not work with a server.
        measured: whether the probe measured the link.
    """
    from phalanx.tools.advisor.growth import doublings, grow
    from phalanx.tools.report import tables

    grown = grow(probe, link, doublings(*ends), work_s, stragglers)
    sentence = best_schemes(grown)
    if plot is not None:
        from phalanx.tools.report.growth import plot_growth

        plot_growth(grown, f"{probe.run.model!r}: predicted steps", probe.batch, plot)
    if as_json:
        print_json(
            {
                "link": {kind: vars(link.line(kind)) for kind in ("gather", "reduce")},
                "measured_link": measured,
                "run": repr(probe.run),
                "batch": probe.batch,
                "left_out": list(left_out),
                "stragglers": stragglers,
                "scales": grown.to_json(),
                "sentence": sentence,
                "note": NOTE,
            }
        )
        return
    typer.echo(probe_options.describe(probe, link, measured))
    header = ("scheme", *(f">{n}" for n in grown.workers), f">rows at {ends[1]}")
    rows = []
    for j, line in enumerate(grown.advices[0].lines):
        steps = [tables.seconds(advice.lines[j].step.seconds) for advice in grown.advices]
        rows.append([line.cost.scheme, *steps, tables.size(grown.rows_bytes[-1][j])])
        if grown.simulated is not None:
            rows.append(["  simulated", *(tables.seconds(column[j]) for column in grown.simulated), ""])
    tables.console().print(tables.plain_table("seconds of a step, by number of workers", header, rows))
    plot_line = f"\nplot    {plot}" if plot is not None else ""
    typer.echo(f"\n{sentence}\n{NOTE}{left_out_sentence(left_out)}{plot_line}")


def best_schemes(grown: Growth) -> str:
    """Says which scheme is best for which numbers of workers."""
    from phalanx.tools.advisor.quality import PLAIN

    parts = []
    for first, last, scheme in grown.best:
        name = "the uncompressed all-reduce" if scheme == PLAIN else scheme
        parts.append(f"{name} at {first}" if first == last else f"{name} from {first} to {last}")
    return f"Best: {'; '.join(parts)} workers."


def left_out_sentence(left_out: Sequence[str]) -> str:
    """A last line that names the schemes that are missing in a table for a server."""
    return f"\nNot in the table, as they do not work with a server: {', '.join(left_out)}." if left_out else ""

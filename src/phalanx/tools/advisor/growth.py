# SPDX-License-Identifier: Apache-2.0
"""What becomes of a step when the workers become more and more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phalanx.core.codec import Gather
from phalanx.core.expression import require
from phalanx.core.layout import Layout
from phalanx.core.parser import parse
from phalanx.core.scatter import Scatter
from phalanx.core.stage import Stage
from phalanx.core.wire_stage import stages_of
from phalanx.tools.advisor.advise import WORTH, Advice, advise, redundancy
from phalanx.tools.advisor.link import Link
from phalanx.tools.advisor.model import Cost
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import PLAIN
from phalanx.tools.advisor.served import ENTRY_BYTES
from phalanx.tools.advisor.simulation import simulate, straggling

SEED = 0  # of what is drawn in a simulation


@dataclass(frozen=True)
class Growth:
    """Advice for growing numbers of workers, each with the probe's share of the batch.

    Args:
        simulated: seconds of a simulated step, by number of workers and scheme; None where nothing was simulated.
        rows_bytes: of the decoded rows that a process, or the server, holds, by number of workers and scheme.
    """

    workers: tuple[int, ...]
    advices: tuple[Advice, ...]
    simulated: tuple[tuple[float, ...], ...] | None
    rows_bytes: tuple[tuple[int, ...], ...]

    @property
    def best(self) -> list[tuple[int, int, str]]:
        """Ranges of workers, first and last, with the best scheme there; of equal ones the uncompressed scheme."""
        ranges: list[tuple[int, int, str]] = []
        for n, advice in zip(self.workers, self.advices, strict=True):
            first = min(advice.lines, key=lambda line: line.step.seconds)
            name = first.cost.scheme if first.speedup >= WORTH else PLAIN
            if ranges and ranges[-1][2] == name:
                ranges[-1] = (ranges[-1][0], n, name)
            else:
                ranges.append((n, n, name))
        return ranges

    def to_json(self) -> list[dict[str, Any]]:
        """Converts to plain values, for JSON, one for each number of workers."""
        columns = []
        for i, (n, advice) in enumerate(zip(self.workers, self.advices, strict=True)):
            schemes = []
            for j, line in enumerate(advice.lines):
                also = {} if self.simulated is None else {"simulated_s": self.simulated[i][j]}
                schemes.append({**line.to_json(), **also, "rows_bytes": self.rows_bytes[i][j]})
            columns.append({"workers": n, "schemes": schemes, "sentence": advice.sentence})
        return columns


def doublings(first: int, last: int) -> tuple[int, ...]:
    """first, twice, four times and so on, and last.

    Raises:
        ValueError: last is no larger than first.

    >>> doublings(4, 20)
    (4, 8, 16, 20)
    """
    require(last > first, f"--scale-to goes on from {first} workers and takes a larger number, got {last}")
    numbers = [first]
    while 2 * numbers[-1] < last:
        numbers.append(2 * numbers[-1])
    return (*numbers, last)


def grow(
    probe: Probe, link: Link, workers: Sequence[int], work_s: float | None, stragglers: float | None = None
) -> Growth:
    """Predictions, and simulations beside them on request.

    Args:
        stragglers: relative standard deviation of a worker's time for forward and backward in a simulation, >= 0; None
            to simulate nothing.
    Raises:
        ValueError: too few workers for a scheme, or a negative deviation.
    """
    require(stragglers is None or stragglers >= 0, f"--stragglers takes a ratio >= 0, got {stragglers}")
    advices = tuple(advise(probe, link, n, work_s) for n in workers)
    spent_s = probe.work_s if work_s is None else work_s
    simulated = None
    if stragglers is not None:
        simulated = tuple(tuple(_simulated(c, spent_s, link, n, stragglers) for c in probe.costs) for n in workers)
    rows = tuple(tuple(rows_bytes(cost, n, probe.parameters) for cost in probe.costs) for n in workers)
    return Growth(tuple(workers), advices, simulated, rows)


def rows_bytes(cost: Cost, n: int, parameters: int) -> int:
    """What the rows of a process behind the wire take as numbers of four bytes: of all workers, groups, or the sum."""
    return ENTRY_BYTES * rows_held(parse(cost.scheme), n) * parameters


def rows_held(scheme: Stage, n: int) -> int:
    """The number of rows of d entries that a process behind the wire holds, beside payloads.

    Coded rows are decoded some columns at a time where all rules are rules of coordinates; the one row is the result.
    """
    stages = stages_of(scheme)
    for i, stage in enumerate(stages):
        # owners have n rows of 1 / n of the columns
        n = stage.r if isinstance(stage, Scatter) else stage.rows_out(n)
        if isinstance(stage, Gather) and stage.codec.adder(Layout.flat(1)) is not None:
            return 1 if all(rule.scope == "coordinate" for rule in stages[i + 1 :]) else n
        if stage.num_wires:
            break
    return n


def _simulated(cost: Cost, work_s: float, link: Link, n: int, stragglers: float) -> float:
    rng = np.random.default_rng(SEED)
    works = straggling(work_s * redundancy(cost, n), stragglers, n, rng)
    return simulate(cost, works, link, n, rng=rng).seconds

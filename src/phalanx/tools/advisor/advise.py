# SPDX-License-Identifier: Apache-2.0
"""Which scheme makes a step shorter, by how much, and below which bandwidth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phalanx.core.parser import parse
from phalanx.core.registry import suggest
from phalanx.core.stage import check_scheme
from phalanx.tools.advisor.link import Link
from phalanx.tools.advisor.measure import num_units
from phalanx.tools.advisor.model import BreakEven, Cost, Step, break_even, check_workers, predict
from phalanx.tools.advisor.probe import Probe
from phalanx.tools.advisor.quality import PLAIN
from phalanx.tools.report.tables import seconds

WORTH = 1.05  # a smaller speed-up is within the error of the prediction


@dataclass(frozen=True)
class Line:
    """The advice on one scheme.

    Args:
        speedup: uncompressed step over this one.
        ends: where that is 1.
    """

    cost: Cost
    step: Step
    speedup: float
    ends: BreakEven

    def to_json(self) -> dict[str, Any]:
        """Converts to plain values, for JSON."""
        return {
            "scheme": self.cost.scheme,
            "quality": self.cost.quality,
            "sent_bytes": self.cost.sent_bytes,
            **asdict(self.step),
            "step_s": self.step.seconds,
            "speedup": self.speedup,
            "break_even": asdict(self.ends),
        }


@dataclass(frozen=True)
class Advice:
    """The predictions for all schemes, and the advice in one sentence."""

    lines: tuple[Line, ...]
    sentence: str


def advise(probe: Probe, link: Link, n: int, work_s: float | None = None) -> Advice:
    """Predictions for n workers, one a process, each with the probe's share of the batch.

    Args:
        work_s: of forward and backward, in place of the probe's.
    Raises:
        ValueError: fewer than two workers, or too few for a scheme.
    """
    check_workers(n)
    work_s = probe.work_s if work_s is None else work_s
    plain = next(cost for cost in probe.costs if cost.scheme == PLAIN)
    plain_step = predict(plain, work_s, link, n)
    lines = []
    for cost in probe.costs:
        works = work_s * redundancy(cost, n)
        step = predict(cost, works, link, n)
        ends = break_even(cost, plain, (works, work_s), link, n)
        lines.append(Line(cost, step, plain_step.seconds / step.seconds, ends))
    return Advice(tuple(lines), _sentence(lines))


def redundancy(cost: Cost, n: int) -> float:
    """How often each example is computed: 1 but for schemes that ask for redundant work.

    Raises:
        ValueError: n workers are too few for the scheme.
    """
    scheme = parse(cost.scheme)
    check_scheme(scheme, n)
    return n / num_units(scheme, n)


def chosen(probe: Probe, schemes: Sequence[str]) -> Probe:
    """The probe with the uncompressed scheme and these only; all when none is given.

    Raises:
        ValueError: one of them was not measured.
    """
    if not schemes:
        return probe
    wanted = {repr(parse(scheme)) for scheme in schemes}
    have = [cost.scheme for cost in probe.costs]
    for scheme in sorted(wanted):
        if scheme not in have:
            raise ValueError(
                f"the probe did not measure {scheme}; probe again with --scheme, or {suggest(scheme, have)}"
            )
    kept = tuple(cost for cost in probe.costs if cost.scheme in {PLAIN, *wanted})
    return Probe(**{**vars(probe), "costs": kept})


def _sentence(lines: Sequence[Line]) -> str:
    plain = next(line for line in lines if line.cost.scheme == PLAIN)
    others = sorted((line for line in lines if line is not plain), key=lambda line: line.step.seconds)
    if not others or others[0].speedup < WORTH:
        best = f"; the best other scheme, {others[0].cost.scheme}, is {_times(others[0])}" if others else ""
        return f"Do not compress: a step takes {_seconds(plain)} uncompressed{best}."
    best = others[0]
    sentence = f"Use {best.cost.scheme} ({best.cost.quality}): a step takes {_seconds(best)} instead of"
    sentence += f" {_seconds(plain)}, {_times(best)}"
    unbiased = next((line for line in others if line.cost.quality == "unbiased"), None)
    if unbiased is None or unbiased.speedup < WORTH:
        return f"{sentence}; no unbiased scheme here is worth it."
    if unbiased is best:
        return f"{sentence}."
    return f"{sentence}; of the unbiased ones {unbiased.cost.scheme}, {_times(unbiased)}."


def _seconds(line: Line) -> str:
    return seconds(line.step.seconds)


def _times(line: Line) -> str:
    return f"{line.speedup:.2f} times as fast"

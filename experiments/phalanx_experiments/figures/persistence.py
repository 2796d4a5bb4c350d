# SPDX-License-Identifier: Apache-2.0
"""How long a backdoor lasts after the last attack."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean

from phalanx.tools.report.backdoors import QUIET, backdoor_tables, cells, rates, window, within
from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Sheet

LATER = (0, 1, 2, 5, 10, 20, 50, 100)  # rounds behind the last attack


def attacks(result: Result) -> list[int]:
    """The rounds in which an attacker took part, counted from 1."""
    lines = result.metrics()
    return [line["step"] + 1 for line in lines if set(line.get("clients", line["byzantine"])) & set(line["byzantine"])]


def right_after(result: Result) -> float | None:
    """Attack success at the end of rounds with an attacker, the mean of those in the run's window."""
    hit = set(attacks(result))
    return within([(index, rate) for index, rate in rates(result) if index in hit], window(result))


def since(result: Result) -> dict[int, float]:
    """Attack success by the rounds that have passed since the last attack, where it was tested."""
    last = max(attacks(result), default=None)
    return {} if last is None else {index - last: rate for index, rate in rates(result) if index >= last}


def persistence_tables(results: Sequence[Result]) -> list[Sheet]:
    """Attack success right after attacks, and some rounds after the last one; means over the seeds."""
    rows = []
    for (attack, rule), runs in cells(results).items():
        if attack == QUIET:
            continue
        waned = [since(run) for run in runs.values()]
        after = _percent(right_after(run) for run in runs.values())
        rows.append((attack, rule, after, *(_percent(each.get(later) for each in waned) for later in LATER)))
    kept = [0, 1, 2, *(i for i in range(3, 3 + len(LATER)) if any(row[i] is not None for row in rows))]
    header = ("attack", "rule", "right after attacks", *(f"{later} later" for later in LATER))
    if not rows:
        return []
    title = "attack success (%) right after attacks, mean, and rounds after the last one"
    return [Sheet(title, tuple(header[i] for i in kept), tuple(tuple(row[i] for i in kept) for row in rows))]


def attack_tables(results: Sequence[Result]) -> list[Sheet]:
    """Excess, accuracies and rows taken, and how long the backdoor lasts."""
    return [*backdoor_tables(results), *persistence_tables(results)]


def _percent(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(100 * mean(known), 1) if known else None

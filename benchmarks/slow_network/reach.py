# SPDX-License-Identifier: Apache-2.0
"""Seconds to an accuracy, of rounds counted in a simulation and steps measured over the network.

The simulation ends with the bits of the job over the network, so its accuracy after a number of rounds is the job's.
What the adversary takes for itself is no part of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result, collect
from slow_network.breakdown import DDP


def rescaled(folders: Sequence[Path], lines: Sequence[Mapping[str, Any]], baseline: str) -> dict[int, list[Result]]:
    """By seed, the runs of these folders with measured steps, in their seconds, and plain DDP as another run.

    Args:
        lines: of a breakdown, at one rate and number of workers.
        baseline: label of the run whose accuracies are DDP's, too.
    Raises:
        ValueError: the lines are of several networks, or of no run's label.
    """
    networks = {(line["workers"], line["rate"]) for line in lines}
    if len(networks) != 1:
        raise ValueError(f"reach needs the steps of one network, got {sorted(networks)}; measure one rate and number")
    steps = {line["label"]: line["step_s"] for line in lines}
    by_seed: dict[int, list[Result]] = {}
    for result in collect(folders):
        if result.name not in steps:
            continue
        runs = by_seed.setdefault(result.job.seed, [])
        if result.name == baseline and DDP in steps:
            runs.append(timed(result, DDP, steps[DDP]))
        runs.append(timed(result, result.name, steps[result.name]))
    if not by_seed:
        raise ValueError(f"no step of any of these runs was measured; there are {', '.join(map(repr, steps))}")
    return by_seed


def timed(result: Result, label: str, step_s: float) -> Result:
    """A copy of the run in which each round takes so many seconds."""
    curve = replace(result.curve, seconds=[rounds * step_s for rounds in result.curve.rounds])
    return replace(result, label=label, curve=curve, summary={**result.summary, "round_s": step_s})

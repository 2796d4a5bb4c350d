# SPDX-License-Identifier: Apache-2.0
"""The runs of a red team study: the requested attacks against rules, and the runs that they are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import phalanx as px
from phalanx.backdoors.attack_success import Backdoor
from phalanx.core.expression import require
from phalanx.core.registry import suggest
from phalanx.tools.redteam.verdict import is_plain
from phalanx.tools.report.backdoors import QUIET, cell_of
from phalanx.tools.runner.measurement import Job
from phalanx.training.parity import Parity
from phalanx.training.phase import Run, amend
from phalanx.training.run_folder import slug

ASKED = 100  # clients that the exam of parity asks, as all of thousands would take longer than the training


def grid_of(source: str, jobs: Mapping[str, Job]) -> dict[str, Run]:
    """The runs of a recipe of attacks, each with an evaluator of fairness.

    Raises:
        ValueError: the recipe does not attack aggregation rules.
    """
    runs = {label: job for label, job in jobs.items() if isinstance(job, Run)}
    quiet = {rule for attack, rule in map(cell_of, runs) if attack == QUIET}
    examined = all(any(isinstance(exam, Backdoor) for exam in run.evaluators) for run in runs.values())
    paired = bool(runs) and all(rule in quiet for _, rule in map(cell_of, runs))
    require(
        len(runs) == len(jobs) and paired and examined,
        f"phalanx redteam cannot use {source}: it needs runs labelled 'attack: rule' with an evaluator backdoor(...), "
        "and a run 'none: rule' for each rule, as edge-case-mnist has them",
    )
    return {label: fairly(run) for label, run in runs.items()}


def fairly(run: Run) -> Run:
    """The run with an exam of how equally it serves its clients."""
    if any(isinstance(exam, Parity) for exam in run.evaluators):
        return run
    return replace(run, evaluators=(*run.evaluators, px.training.parity(ASKED if run.workers > ASKED else None)))


def narrowed(runs: Mapping[str, Run], only: Sequence[str]) -> dict[str, Run]:
    """The requested runs, and those without an attack that they are compared with.

    Args:
        only: labels "attack: rule", or an attack or a rule alone; all runs when empty.
    Raises:
        ValueError: there is no such run.
    """
    if not only:
        return dict(runs)
    names = {label: {slug(label), *map(slug, cell_of(label))} for label in runs}
    for wanted in only:
        known = any(slug(wanted) in slugs for slugs in names.values())
        parts = list(dict.fromkeys(part for label in runs for part in cell_of(label)))
        require(known, f"no run, attack or rule of the grid is called {wanted!r}; {suggest(wanted, parts)}")
    asked = {slug(wanted) for wanted in only}
    kept = {cell_of(label) for label, slugs in names.items() if slugs & asked}
    kept |= {(QUIET, rule) for _, rule in kept}
    return {
        label: run
        for label, run in runs.items()
        if cell_of(label) in kept or (cell_of(label)[0] == QUIET and is_plain(run))
    }


def seeded(runs: Mapping[str, Run], seeds: int) -> dict[str, Run]:
    """Every run with so many seeds from its own on, labelled "attack: rule, seed 1" if there are several."""
    require(seeds >= 1, f"--seeds takes a number >= 1, got {seeds}")
    if seeds == 1:
        return dict(runs)
    return {
        f"{label}, seed {run.seed + i}": amend(run, "seed", run.seed + i)
        for i in range(seeds)
        for label, run in runs.items()
    }

# SPDX-License-Identifier: Apache-2.0
"""The study that a command line asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from phalanx.core.parser import parse_value
from phalanx.core.registry import suggest
from phalanx.tools.runner.measurement import Job, parse_job
from phalanx.tools.runner.recipe import find, find_or_none
from phalanx.tools.runner.study import Study
from phalanx.training.phase import NoField, amend
from phalanx.training.run_folder import slug

ALONE = "run"  # label of a run that no recipe names


def build_study(
    recipe: str,
    scale: str | None = None,
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int | None = None,
) -> Study:
    """The study that a command line asks for, checked before anything is computed.

    Args:
        recipe: a recipe's name, the expression of a run or a measurement, or a file that holds one.
        scale: of a recipe; "laptop" when None.
        settings: "path=value", one after the other; a value is an expression, a literal or a word.
        only: labels to keep; all when empty.
        seed: of every run.
    Raises:
        ValueError: a name, label, path or value that does not fit; the sentence lists the choices.
    """
    name, scale, jobs = _named(recipe, scale)
    if only:
        jobs = {label: jobs[label] for label in _chosen(only, list(jobs))}
    settings = (*settings, *([] if seed is None else [f"seed={seed}"]))
    notices: list[str] = []
    for setting in settings:
        jobs, without = _set(jobs, setting)
        if without:
            notices.append(f"--set {setting} has no place in: {'; '.join(without)}")
    for label, job in jobs.items():
        try:
            job.check()
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None
    return Study(name, scale, tuple(settings), jobs, tuple(notices))


def _named(recipe: str, scale: str | None) -> tuple[str, str | None, dict[str, Job]]:
    if not _is_expression(recipe):
        scale = scale or "laptop"
        return recipe, scale, find(recipe).jobs(scale)
    if scale is not None:
        raise ValueError("a scale belongs to a recipe, not to a single run; use --set rounds=... instead")
    if not os.path.isfile(recipe):
        return ALONE, None, {ALONE: parse_job(recipe, "the expression")}
    try:
        return ALONE, None, {ALONE: parse_job(Path(recipe).read_text(), recipe)}
    except UnicodeDecodeError:
        raise ValueError(f"{recipe} is not a text file; give one that holds a run(...)") from None


def _is_expression(recipe: str) -> bool:
    """Whether this is an expression or a file, and not the name of a recipe."""
    if "(" in recipe:
        return True
    if find_or_none(recipe) is not None:
        return False
    if os.path.isfile(recipe):
        return True
    if os.path.isdir(recipe):
        raise ValueError(f"{recipe} is a folder; give --resume {recipe}, or the config.txt of a run in it")
    if "/" in recipe or "." in recipe:
        raise ValueError(
            f"{recipe} is no file; give a recipe (phalanx list recipes), a run(...) or a file that has one"
        )
    return False


def _chosen(only: Sequence[str], labels: list[str]) -> list[str]:
    by_slug = {slug(label): label for label in labels}
    for wanted in only:
        if slug(wanted) not in by_slug:
            raise ValueError(f"no run is labelled {wanted!r}; {suggest(wanted, labels)}")
    kept = {by_slug[slug(wanted)] for wanted in only}
    return [label for label in labels if label in kept]


def _set(jobs: dict[str, Job], setting: str) -> tuple[dict[str, Job], list[str]]:
    """The jobs with a setting where they have its path, and the labels of those that have not."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise ValueError(f"--set takes path=value, such as optimizer.lr=0.05, got {setting!r}")
    value = parse_value(text)
    changed: dict[str, Job] = {}
    without, error = [], None
    for label, job in jobs.items():
        try:
            changed[label] = amend(job, path.strip(), value)
        except NoField as unfit:
            changed[label], error = job, unfit
            without.append(label)
    if error is not None and len(without) == len(jobs):
        raise error
    return changed, without

# SPDX-License-Identifier: Apache-2.0
"""A recipe is a function that returns labelled runs, or measurements, side by side in one table."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

from phalanx.core.registry import suggest
from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import plot_study
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.runner.measurement import Job
from phalanx.training.phase import Run
from phalanx.training.run_folder import slug

Build = Callable[[str], Mapping[str, Job]]
Plot = Callable[[Sequence[Result], str, Path], None]  # results, title, PNG to write
Tables = Callable[[Sequence[Result]], list[Sheet]]

SCALES = ("smoke", "laptop", "paper")  # seconds; minutes; the size that was published

ENTRY_POINTS = "phalanx.recipes"  # each names a module that registers recipes when it is imported
EXPERIMENTS = "phalanx-experiments"  # the package with the recipes of the dissertation; `pip install` takes this name

_recipes: dict[str, Recipe] = {}


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    Args:
        scales: the sizes it comes in, of smoke, laptop and paper.
        build: from a scale to labelled runs or measurements, in the order of the table. A label "a: b" is run b of the
            panel a.
        plot: of all its runs, finished or not.
        tables: what it reports beyond the table of all runs.
    """

    name: str
    scales: tuple[str, ...]
    build: Build
    plot: Plot
    tables: Tables

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.build) or "").partition("\n")[0]

    def jobs(self, scale: str) -> dict[str, Job]:
        """What it does, by label.

        Raises:
            ValueError: the recipe does not come in this scale.
        """
        if scale not in self.scales:
            raise ValueError(f"{self.name} has no scale {scale!r}; {suggest(scale, list(self.scales))}")
        jobs = dict(self.build(scale))
        assert len({slug(label) for label in jobs}) == len(jobs), "two labels name one folder"
        return jobs

    def runs(self, scale: str) -> dict[str, Run]:
        """Those of its jobs that train."""
        return {label: job for label, job in self.jobs(scale).items() if isinstance(job, Run)}


def nothing(results: Sequence[Result]) -> list[Sheet]:
    """No tables beyond that of all runs."""
    return []


def recipe(
    name: str, scales: tuple[str, ...] = SCALES, plot: Plot = plot_study, tables: Tables = nothing
) -> Callable[[Build], Build]:
    """Registers a function of the scale as a recipe, with its plot and its tables."""
    assert set(scales) <= set(SCALES)

    def wrap(build: Build) -> Build:
        _recipes[name] = Recipe(name, scales, build, plot, tables)
        return build

    return wrap


def recipes() -> list[Recipe]:
    """All recipes, by name: the library's and those of installed packages."""
    _load(None)
    return [_recipes[name] for name in sorted(_recipes)]


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        ValueError: there is none; the sentence lists the choices.
    """
    recipe = find_or_none(name)
    if recipe is None:
        more = "" if experiments_installed() else f"; the other recipes come with pip install {EXPERIMENTS}"
        raise ValueError(f"unknown recipe {name!r}; {suggest(name, [r.name for r in recipes()])}{more}")
    return recipe


def find_or_none(name: str) -> Recipe | None:
    """The recipe of a name, or None if there is none."""
    _load(name)
    return _recipes.get(name)


def experiments_installed() -> bool:
    """Whether the package with the recipes of the dissertation is installed."""
    package = EXPERIMENTS.replace("-", "_")
    return any(entry.value.partition(".")[0] == package for entry in entry_points(group=ENTRY_POINTS))


def _load(name: str | None) -> None:
    """Imports the modules that register recipes. If an entry point has this name, only its module is imported."""
    entries = entry_points(group=ENTRY_POINTS)
    for entry in [entry for entry in entries if entry.name == name] or entries:
        import_module(entry.value)

# SPDX-License-Identifier: Apache-2.0
"""The end of a study: its summary, its plot, and the tables of its recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from phalanx.core.optional import MissingPackage
from phalanx.tools.report.collect import collect
from phalanx.tools.report.measured import measured_tables, no_plot
from phalanx.tools.report.plots import plot_study
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.runner.recipe import find_or_none, nothing
from phalanx.tools.runner.study import Study, StudyFolder
from phalanx.training.run_folder import write_json


def finish_study(
    study: Study, folder: StudyFolder, tell: Callable[[str], None] = lambda words: None
) -> tuple[list[dict[str, Any]], list[Sheet]]:
    """Writes summary.json, plot.png and the recipe's tables, if it has any; returns the results and the tables.

    Args:
        tell: is called with a sentence if there is no plot, because the package that draws it is not installed.
    """
    recipe = find_or_none(study.recipe)
    plot, tables = (plot_study, nothing) if study.runs else (no_plot, measured_tables)
    if recipe is not None:
        plot, tables = recipe.plot, recipe.tables
    results, curves = folder.results(study), collect([folder.path])
    write_json(folder.path / "summary.json", results)
    sheets = tables(curves)
    if sheets:
        write_json(folder.path / "tables.json", [sheet.to_json() for sheet in sheets])
    try:
        plot(curves, folder.title(study), folder.path / "plot.png")
    except MissingPackage as missing:
        tell(str(missing))
    return results, sheets

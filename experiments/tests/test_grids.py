# SPDX-License-Identifier: Apache-2.0
"""Grids of methods and attacks, and the recipes that they show."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_recipes import ran

from phalanx.tools.report.collect import Curve, Result
from phalanx_experiments.figures.grid import grid_tables, plot_grid
from phalanx_experiments.recipes import find


def test_a_grid_has_a_line_for_each_method_and_says_what_is_missing(tmp_path: Path) -> None:
    reached = {"none: mean": 0.95, "none: median": 0.9, "liars: mean": 0.1, "liars: vote": None}
    runs = [
        Result(label, tmp_path, {}, Curve([1], [1.0], [1.0], [] if accuracy is None else [accuracy]))
        for label, accuracy in reached.items()
    ]
    (sheet,) = grid_tables(runs)
    assert sheet.header == ("method", "none", "liars")
    assert sheet.rows == (("mean", "95.0 %", "10.0 %"), ("median", "90.0 %", None), ("vote", None, None))
    plot_grid(runs, "title", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.data
def test_poisoned_statistics_spoil_what_is_averaged_and_not_what_is_protected(tmp_path: Path) -> None:
    labels = ("statistics: median", "statistics: median, statistics averaged", "no attack: median")
    (table,) = ran("batchnorm-protected", tmp_path, *labels)["tables"]
    found = {row[0]: row[1:] for row in table["rows"]}
    assert table["header"] == ["method", "no attack", "statistics"]
    protected, averaged = (float(found[name][1].split()[0]) for name in ("median", "median, statistics averaged"))
    assert protected > averaged + 20


def test_only_the_rule_differs_between_protected_and_not() -> None:
    runs = find("batchnorm-protected").runs("laptop")
    for label, run in runs.items():
        attack, _, name = label.partition(": ")
        whole = runs[f"{attack}: {name.partition(',')[0]}"]
        assert replace(run, phases=whole.phases) == whole
        assert run.phases[0].scheme.stages[:-2] == whole.phases[0].scheme.stages[: len(run.phases[0].scheme.stages) - 2]


def test_composed_phases_meet_every_attack_alike() -> None:
    runs = find("fedma-composed").runs("laptop")
    free = {label.partition(": ")[2]: run for label, run in runs.items() if label.startswith("no attack")}
    for label, run in runs.items():
        attack, _, name = label.partition(": ")
        if attack == "no attack":
            continue
        assert 0 in run.byzantine.at(0, run.workers, 0)
        (phase,), (same,) = run.phases, free[name].phases
        assert phase.scheme.stages[-len(same.scheme.stages) :] == same.scheme.stages
        assert replace(phase, scheme=same.scheme) == same

# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of attacks in many settings, with one line for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from phalanx.tools.report.backdoors import QUIET, cells, excess, main_accuracy, rates, window, within
from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Sheet
from phalanx.training.phase import Run
from phalanx_experiments.figures.persistence import attacks

LATER = ((0, 10), (10, 20), (20, 50), (50, 100), (100, 200))  # rounds behind the last attack


def sweep_tables(results: Sequence[Result]) -> list[Sheet]:
    """Attack success with and without each attack, both in the later half of its rounds, and what accuracy it costs."""
    rows = [
        (attack, where, *map(_percent, (with_it, without, gained, lost)), n)
        for attack, where, with_it, without, gained, lost, n in _lines(results)
    ]
    header = ("attack", "setting", "success (%)", "without (%)", "excess", "main accuracy lost", "n")
    title = "attack success in the later half of the rounds with attacks"
    return [Sheet(title, header, tuple(rows)), *_faded(results)]


def plot_sweep(results: Sequence[Result], title: str, path: Path) -> None:
    """A bar for the excess of each attack in each setting."""
    lines = [line for line in _lines(results) if line[4] is not None]
    fig = figure(8.5, 0.8 + 0.3 * max(len(lines), 3))
    ax: Any = fig.subplots()
    names = [f"{attack}: {where}" for attack, where, *_ in lines]
    ax.barh(range(len(lines)), [100 * line[4] for line in lines], color="#0b6cb0")
    ax.set_yticks(range(len(lines)), names, fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color="black", lw=0.8)
    ax.set_xlabel("attack success, points above the run without the attack")
    tidy(ax)
    save(fig, title, path)


def _faded(results: Sequence[Result]) -> list[Sheet]:
    """The excess that remains some rounds after the last attack, for attackers who leave."""
    grid, rows = cells(results), []
    for (attack, where), runs in grid.items():
        quiet = grid.get((QUIET, where), {})
        pairs = [(run, quiet[seed]) for seed, run in runs.items() if seed in quiet]
        if attack == QUIET or not all(_leaves(run) for run in runs.values()):
            continue
        left = []
        for a, b in LATER:
            ranges = [(run, calm, (max(attacks(run)) + a, max(attacks(run)) + b)) for run, calm in pairs]
            both = [(within(rates(run), rounds), within(rates(calm), rounds)) for run, calm, rounds in ranges]
            left.append(_percent(_mean([x - y for x, y in both if x is not None and y is not None])))
        rows.append((attack, where, *left, len(pairs)))
    header = ("attack", "setting", *(f"{a} to {b} rounds later" for a, b in LATER), "n")
    return [Sheet("excess behind the last attack", header, tuple(rows))] if rows else []


def _leaves(run: Result) -> bool:
    """Whether the attacker leaves before the run ends."""
    job = run.job
    return isinstance(job, Run) and window(run)[1] < job.rounds and bool(attacks(run))


def _lines(results: Sequence[Result]) -> list[tuple[Any, ...]]:
    """Attack, setting, success, success without, excess, accuracy lost, seeds; means of what is known."""
    grid, lines = cells(results), []
    for (attack, where), runs in grid.items():
        quiet = grid.get((QUIET, where), {})
        pairs = [(run, quiet[seed]) for seed, run in runs.items() if seed in quiet]
        if attack == QUIET or not pairs:
            continue
        with_it = [within(rates(run), window(run)) for run, _ in pairs]
        without = [within(rates(calm), window(run)) for run, calm in pairs]
        gained = [excess(run, calm) for run, calm in pairs]
        ends = [(main_accuracy(run), main_accuracy(calm, window(run))) for run, calm in pairs]
        lost = [b - a for a, b in ends if a is not None and b is not None]
        lines.append((attack, where, *map(_mean, (with_it, without, gained, lost)), len(pairs)))
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)

# SPDX-License-Identifier: Apache-2.0
"""Attacks against defences: how far backdoors get in, and what the defence costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from phalanx.phase import Run
from phalanx.report.collect import Result
from phalanx.report.convergence import panels_of, short
from phalanx.report.plots import figure, save, tidy
from phalanx.report.sheet import Sheet

LATE = 0.5  # share of the tested rounds at the end over which rates are averaged
QUIET = "none"


def rates(result: Result, key: str = "attack_success") -> list[tuple[int, float]]:
    """(round, what the exam of the backdoor found under a key), for every tested round."""
    found = []
    for line in result.metrics():
        for exam in line.get("examined", {}).values():
            if exam.get(key) is not None:
                found.append((line["step"] + 1, float(exam[key])))
    return found


def late(result: Result, key: str = "attack_success") -> float | None:
    """The mean over the later half of the attacked rounds that were tested."""
    begins = _first_attack(result)
    values = [value for at, value in rates(result, key) if at > begins]
    return mean(values[int(LATE * len(values)) :]) if values else None


def _first_attack(result: Result) -> int:
    """The rounds before the phase in which attacks may come."""
    made = result.job
    assert isinstance(made, Run)
    return sum(phase.rounds for phase in made.phases[:-1])


def backdoor_tables(results: Sequence[Result]) -> list[Sheet]:
    """Excess of attack success over a run without an attack, accuracies, and how often the attacker's row was taken."""
    panels = panels_of(results)
    attacks = [name for name in panels if name != QUIET]
    by = {(attack, short(run)): run for attack, runs in panels.items() for run in runs}
    defences = list(dict.fromkeys(map(short, results)))
    excess, cost, taken = [], [], []
    for defence in defences:
        quiet = by.get((QUIET, defence))
        floor = late(quiet) if quiet is not None else None
        runs = [by.get((attack, defence)) for attack in attacks]
        gained = [None if run is None else late(run) for run in runs]
        excess.append((defence, _percent(floor), *(_percent(_less(g, floor)) for g in gained)))
        reached = [None if run is None else run.accuracy for run in (quiet, *runs)]
        cost.append((defence, *map(_percent, reached)))
        taken.append((defence, *(None if run is None else _percent(_chosen(run)) for run in runs)))
    sheets = [
        Sheet("attack success, points above the run without an attack", ("rule", "without", *attacks), tuple(excess)),
        Sheet("main accuracy at the end (%)", ("rule", QUIET, *attacks), tuple(cost)),
    ]
    if any(cell is not None for row in taken for cell in row[1:]):
        rows = tuple(row for row in taken if any(cell is not None for cell in row[1:]))
        title = "attacks in which the rule took the attacker's row (%)"
        sheets.append(Sheet(title, ("rule", *attacks), rows))
    return sheets


def plot_backdoors(results: Sequence[Result], title: str, path: Path) -> None:
    """Attack success by round, a panel for each attack, a line for each rule."""
    panels = panels_of(results)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    made = figure(6.2 * columns, 3.8 * lines)
    axes: Any = made.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    defences = list(dict.fromkeys(map(short, results)))
    for i, (attack, runs) in enumerate(panels.items()):
        ax = axes[i // columns][i % columns]
        for run in runs:
            points = rates(run)
            style = "-" if defences.index(short(run)) < 10 else "--"
            colour = f"C{defences.index(short(run)) % 10}"
            ax.plot([x for x, _ in points], [100 * y for _, y in points], style, color=colour, label=short(run), lw=1.3)
        ax.set_title("no attack" if attack == QUIET else attack, fontsize=10)
        ax.set_ylabel("attack success (%)")
        ax.set_xlabel("round")
        tidy(ax)
    handles, labels = axes[0][0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save(made, title, path)


def _chosen(result: Result) -> float | None:
    """Of the rounds with Byzantine workers, those in which a rule that names its rows named one of theirs."""
    seen = [line for line in result.metrics() if set(line.get("clients", line["byzantine"])) & set(line["byzantine"])]
    told = [bool(set(line["chosen"]) & set(line["byzantine"])) for line in seen if "chosen" in line]
    return mean(told) if told else None


def _less(x: float | None, y: float | None) -> float | None:
    return None if x is None or y is None else x - y


def _percent(x: float | None) -> float | None:
    return None if x is None else round(100 * x, 1)

# SPDX-License-Identifier: Apache-2.0
"""Attacks against defences: how far backdoors get in, and what the defence costs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.sheet import Sheet
from phalanx.training.client_sampler import WithAttackers
from phalanx.training.phase import Run

QUIET = "none"
Cells = dict[tuple[str, str], dict[int, Result]]  # by attack and rule, then by seed


def cell_of(label: str) -> tuple[str, str]:
    """Attack and rule of a run labelled "attack: rule", or "attack: rule, seed 1"."""
    attack, _, rule = re.sub(r", seed \d+$", "", label).rpartition(": ")
    return attack, rule


def cells(results: Sequence[Result]) -> Cells:
    """Runs by their labels' attack and rule, in the order of the labels."""
    grid: Cells = {}
    for result in results:
        grid.setdefault(cell_of(result.name), {})[result.job.seed] = result
    return grid


def rates(result: Result, key: str = "attack_success", exam: str | None = None) -> list[tuple[int, float]]:
    """(round, what an exam found under a key), for every tested round; the first that knows the key if none is named.

    That is the exam of the backdoor that the run's attacker wants.
    """
    points = []
    for line in result.metrics():
        known = [each[key] for name, each in line.get("examined", {}).items() if key in each and exam in (None, name)]
        if known and known[0] is not None:
            points.append((line["step"] + 1, float(known[0])))
    return points


def window(result: Result) -> tuple[int, int]:
    """The later half of the rounds in which attacks may come, of all rounds where none may: behind a, up to b."""
    job = result.job
    assert isinstance(job, Run)
    hit = [i for i, phase in enumerate(job.phases) if phase.adversary is not None]
    first = hit[0] if hit else 0
    before, clients = sum(phase.rounds for phase in job.phases[:first]), job.phases[first].clients
    stays = clients.rounds if hit and isinstance(clients, WithAttackers) else None
    after = job.rounds if stays is None else min(job.rounds, before + stays)
    return before + (after - before) // 2, after


def within(points: Sequence[tuple[int, float]], rounds: tuple[int, int]) -> float | None:
    """The mean of those behind a and up to b."""
    values = [value for index, value in points if rounds[0] < index <= rounds[1]]
    return mean(values) if values else None


def excess(run: Result, quiet: Result | None, key: str = "attack_success") -> float | None:
    """How much higher a rate is in a run's window than in the run without an attack in the same rounds."""
    if quiet is None:
        return None
    rounds, job = window(run), run.job
    assert isinstance(job, Run)
    asked = repr(job.evaluators[0]) if job.evaluators else None
    got, floor = (within(rates(each, key, asked), rounds) for each in (run, quiet))
    return None if got is None or floor is None else got - floor


def main_accuracy(run: Result, rounds: tuple[int, int] | None = None) -> float | None:
    """The mean test accuracy of its window, or of other rounds."""
    return within(list(zip(run.curve.rounds, run.curve.accuracy, strict=True)), rounds or window(run))


def taken(result: Result) -> float | None:
    """The share of the rounds with Byzantine workers in which the rule chose one of their rows.

    None for a rule that does not say which rows it chooses.
    """
    attacked = [
        line for line in result.metrics() if set(line.get("clients", line["byzantine"])) & set(line["byzantine"])
    ]
    told = [bool(set(line["chosen"]) & set(line["byzantine"])) for line in attacked if "chosen" in line]
    return mean(told) if told else None


def backdoor_tables(results: Sequence[Result]) -> list[Sheet]:
    """Excess of attack success over a run without an attack, accuracies, and how often the attacker's row was taken.

    Means over the seeds; each seed's attack is compared with the same seed's run without one.
    """
    grid = cells(results)
    attacks = list(dict.fromkeys(attack for attack, _ in grid if attack != QUIET))
    rules = list(dict.fromkeys(rule for _, rule in grid))
    above, spread, cost, rows_taken = [], [], [], []
    for rule in rules:
        quiet = grid.get((QUIET, rule), {})
        floors = [within(rates(run), window(run)) for run in quiet.values()]
        gains, accuracies, shares = [], [], []
        for attack in attacks:
            runs = grid.get((attack, rule), {})
            gains.append([excess(run, quiet.get(seed)) for seed, run in runs.items()])
            accuracies.append([main_accuracy(run) for run in runs.values()])
            shares.append([taken(run) for run in runs.values()])
        above.append((rule, _mean(floors), *map(_mean, gains)))
        spread.append((rule, *map(_spread, gains)))
        cost.append((rule, _mean([main_accuracy(run) for run in quiet.values()]), *map(_mean, accuracies)))
        rows_taken.append((rule, *map(_mean, shares)))
    counts = sorted({len(runs) for runs in grid.values()}) or [0]
    n = counts[-1]
    over = "" if n < 2 else f", mean of {n} seeds" if len(counts) == 1 else f", means of {counts[0]} to {n} seeds"
    title = f"attack success, points above the run without an attack{over}"
    sheets = [
        Sheet(title, ("rule", "without", *attacks), tuple(above)),
        Sheet(f"main accuracy (%){over}", ("rule", QUIET, *attacks), tuple(cost)),
    ]
    if n > 1:
        sheets.insert(1, Sheet("its standard deviation over the seeds", ("rule", *attacks), tuple(spread)))
    if any(cell is not None for row in rows_taken for cell in row[1:]):
        rows = tuple(row for row in rows_taken if any(cell is not None for cell in row[1:]))
        words = "attacks in which the rule took the attacker's row (%)"
        sheets.append(Sheet(words, ("rule", *attacks), rows))
    return sheets


def plot_backdoors(results: Sequence[Result], title: str, path: Path) -> None:
    """Attack success by round, a panel for each attack, a line for each rule; means over the seeds."""
    grid = cells(results)
    attacks = list(dict.fromkeys(attack for attack, _ in grid))
    rules = list(dict.fromkeys(rule for _, rule in grid))
    columns = min(2, len(attacks))
    lines = -(-len(attacks) // columns)
    fig = figure(6.2 * columns, 3.8 * lines)
    axes: Any = fig.subplots(lines, columns, squeeze=False, sharey=True)
    for i, attack in enumerate(attacks):
        ax = axes[i // columns][i % columns]
        for k, rule in enumerate(rules):
            points = _mean_curve(list(grid.get((attack, rule), {}).values()))
            style = "-" if k < 10 else "--"
            ax.plot([x for x, _ in points], [100 * y for _, y in points], style, color=f"C{k % 10}", label=rule, lw=1.3)
        ax.set_title("no attack" if attack == QUIET else attack, fontsize=10)
        ax.set_ylabel("attack success (%)")
        ax.set_xlabel("round")
        tidy(ax)
    for i in range(len(attacks), lines * columns):
        axes[i // columns][i % columns].axis("off")
    handles, labels = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save(fig, title, path)


def _mean_curve(runs: Sequence[Result]) -> list[tuple[int, float]]:
    """The mean attack success of several runs, in the rounds in which all of them were tested."""
    curves = [dict(rates(run)) for run in runs]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    return [(index, mean(curve[index] for curve in curves)) for index in shared]


def _mean(values: Sequence[float | None]) -> float | None:
    """In percent, of what is known."""
    known = [value for value in values if value is not None]
    return round(100 * mean(known), 1) if known else None


def _spread(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(100 * stdev(known), 1) if len(known) > 1 else None

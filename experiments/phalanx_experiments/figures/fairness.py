# SPDX-License-Identifier: Apache-2.0
"""How unequally defences treat honest clients: accuracy by client and on edge cases, and which rows were taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from phalanx.tools.report.backdoors import Cells, cells, main_accuracy, rates, window, within
from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import figure, save, tidy
from phalanx.tools.report.selected import ROLES, Role, selected
from phalanx.tools.report.sheet import Sheet

Number = Callable[[Result], float | None]
WHO = {"honest, edge cases": "honest, with edge cases", "honest": "other honest", "attacker": "attacker"}


def own_accuracy(result: Result, role: Role) -> float | None:
    """The mean accuracy of a role's clients on their own samples, in the run's window; see the evaluator `parity`."""
    workers = {one.worker for one in selected(result) if one.role == role}
    points = [
        (index, mean(rate for worker, rate in by.items() if worker in workers)) for index, by in _by_client(result)
    ]
    return within(points, window(result)) if workers else None


def parity(result: Result) -> float | None:
    """The least over the greatest accuracy of an honest client on its own samples, the mean over the run's window."""
    honest = {one.worker for one in selected(result) if one.role != "attacker"}
    points = []
    for index, by in _by_client(result):
        known = [rate for worker, rate in by.items() if worker in honest]
        points.append((index, min(known) / max(known) if max(known) else 0.0))
    return within(points, window(result))


def edge_accuracy(result: Result) -> float | None:
    """The share of edge cases of the test part that get their true label, the mean over the run's window."""
    return within(rates(result, "edge_accuracy"), window(result))


def attack_success(result: Result) -> float | None:
    """The share of edge cases that get the label of the attacker, the mean over the run's window."""
    return within(rates(result), window(result))


def chosen(result: Result, role: Role) -> float | None:
    """The share of rows from clients of a role that the rule took."""
    of_role = [one for one in selected(result) if one.role == role and one.chosen is not None and one.rounds]
    return sum(one.chosen or 0 for one in of_role) / sum(one.rounds for one in of_role) if of_role else None


def fairness_tables(results: Sequence[Result]) -> list[Sheet]:
    """Means over the seeds of parity and accuracies, and of how often rows of each kind of client were taken."""
    grid = cells(results)
    attacks, rules = _names(grid)
    n = max(map(len, grid.values()), default=0)
    over = f", mean of {n} seeds" if n > 1 else ""
    wanted: Mapping[str, Number] = {
        "accuracy parity ratio (%)": parity,
        "accuracy on edge cases with right labels (%)": edge_accuracy,
        "accuracy of clients with edge cases on their own samples (%)": lambda run: own_accuracy(
            run, "honest, edge cases"
        ),
        "accuracy of other clients on theirs (%)": lambda run: own_accuracy(run, "honest"),
        "attack success (%)": attack_success,
        "main accuracy (%)": main_accuracy,
    }
    sheets = []
    for title, number in wanted.items():
        rows = []
        for rule in rules:
            values = [_values(grid, attack, rule, number) for attack in attacks]
            spreads = [None if len(each) < 2 else round(100 * stdev(each), 1) for each in values]
            rows.append((rule, *map(_percent, values), *(spreads if n > 1 else ())))
        header = ("rule", *attacks, *([f"{attack}, deviation" for attack in attacks] if n > 1 else []))
        sheets.append(Sheet(f"{title}{over}", header, tuple(rows)))
    rows = []
    for (attack, rule), runs in grid.items():
        shares = [_percent(_known(chosen(run, role) for run in runs.values())) for role in ROLES]
        if any(share is not None for share in shares):
            rows.append((rule, attack, *shares))
    if rows:
        title = f"rounds in which a client's row was taken, of those in which it took part (%){over}"
        sheets.append(Sheet(title, ("rule", "attack", *(WHO[role] for role in ROLES)), tuple(rows)))
    return sheets


def plot_fairness(results: Sequence[Result], title: str, path: Path) -> None:
    """Bars by rule: parity, accuracy on edge cases, and which rows were taken under the last attack."""
    grid = cells(results)
    attacks, rules = _names(grid)
    last = attacks[-1] if attacks else ""
    parts: dict[str, dict[str, Callable[[str], list[float]]]] = {
        "accuracy parity ratio": {a: lambda rule, a=a: _values(grid, a, rule, parity) for a in attacks},
        "accuracy on edge cases": {a: lambda rule, a=a: _values(grid, a, rule, edge_accuracy) for a in attacks},
        f"rows taken by rules that name them, {last}": {
            WHO[role]: lambda rule, role=role: _values(grid, last, rule, lambda run: chosen(run, role))
            for role in ROLES
        },
    }
    fig = figure(14, 2.0 + 0.5 * len(rules))
    axes: Any = fig.subplots(1, len(parts), sharey=True)
    for ax, (name, bars) in zip(axes, parts.items(), strict=True):
        for k, (label, of) in enumerate(bars.items()):
            values = [of(rule) for rule in rules]
            height = 0.8 / len(bars)
            ax.barh(
                [i + (k - (len(bars) - 1) / 2) * height for i in range(len(rules))],
                [100 * mean(each) if each else 0.0 for each in values],
                height,
                xerr=[100 * stdev(each) if len(each) > 1 else 0.0 for each in values],
                label=label,
                color=f"C{k}",
                ecolor="#555555",
            )
        ax.set_title(name, loc="left", fontsize=11)
        ax.set_xlabel("%")
        tidy(ax)
    axes[0].set_yticks(range(len(rules)), rules)
    axes[0].invert_yaxis()
    for ax, place in ((axes[0], "left"), (axes[-1], "right")):
        under: Any = f"outside lower {place}"
        fig.legend(*ax.get_legend_handles_labels(), loc=under, ncols=3, frameon=False, fontsize=9)
    save(fig, title, path)


def _by_client(result: Result) -> list[tuple[int, dict[int, float]]]:
    """(round, accuracy by client on its own samples) for every tested round."""
    points = []
    for line in result.metrics():
        for exam in line.get("examined", {}).values():
            known = {int(w): rate for w, rate in exam.get("accuracy", {}).items() if rate is not None}
            if known:
                points.append((line["step"] + 1, known))
    return points


def _names(grid: Cells) -> tuple[list[str], list[str]]:
    """The attacks and the rules among the labels."""
    return list(dict.fromkeys(attack for attack, _ in grid)), list(dict.fromkeys(rule for _, rule in grid))


def _values(grid: Cells, attack: str, rule: str, number: Number) -> list[float]:
    return _known(number(run) for run in grid.get((attack, rule), {}).values())


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _percent(values: Sequence[float]) -> float | None:
    return round(100 * mean(values), 1) if values else None

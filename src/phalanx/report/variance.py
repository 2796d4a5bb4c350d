# SPDX-License-Identifier: Apache-2.0
"""Entries against singular values, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from phalanx.observers.variance import RESHAPES, Variance
from phalanx.report.collect import Result
from phalanx.report.observed import observed
from phalanx.report.plots import figure, save, tidy
from phalanx.report.sheet import Cell, Sheet

COLOURS = {"entries": "#000000", "paper": "#0072B2", "matrix": "#D55E00", "square": "#009E73"}

Looks = dict[str, dict[int, dict[str, Any]]]  # layer -> round -> what was measured of it


def looks(result: Result) -> Looks:
    """What the run's first variance observer saw; a round in which a gradient was zero or not finite is left out."""
    by_round = next(iter(observed(result, Variance).values()), {})
    layers = dict.fromkeys(name for seen in by_round.values() for name in seen)
    every = {name: {at: seen[name] for at, seen in by_round.items() if seen[name]} for name in layers}
    return {name: seen for name, seen in every.items() if seen}


def ratio(seen: dict[str, Any], reshape: str) -> float:
    """(n + m) |X|_*^2 / |X|_{1,1}^2: at most one where singular values vary less at equal floats."""
    found = seen["spectral"][reshape]
    return (found["rows"] + found["columns"]) * (found["norm"] / seen["entries"]["norm"]) ** 2


def plot_variance(results: Sequence[Result], title: str, path: Path) -> None:
    """A line of panels for each run: the condition of theorem 3.8, and second moments at equal bytes, by layer."""
    made = figure(14, 4.9 * len(results) + 0.4)
    axes: Any = made.subplots(len(results), 2, squeeze=False)
    for result, (left, right) in zip(results, axes, strict=True):
        layers = looks(result)
        names = [f"{name.removesuffix('.weight')}\n{_form(seen)}" for name, seen in layers.items()]
        for i, reshape in enumerate(RESHAPES):
            values = [[ratio(seen, reshape) for seen in rounds.values()] for rounds in layers.values()]
            _ranges(left, values, 0.2 * (i - 1), COLOURS[reshape], f"reshape={reshape!r}")
        left.axhline(1.0, color="#888888", linewidth=1.2)
        left.set_ylabel("$(n + m)\\,|X|_*^2\\;/\\;|X|_{1,1}^2$")
        left.set_title(f"{result.label}: singular values win below 1, at equal floats", loc="left", fontsize=11)
        for i, kind in enumerate(("entries", *RESHAPES)):
            found = [[_part(seen, kind) for seen in rounds.values()] for rounds in layers.values()]
            label = "entries" if kind == "entries" else f"reshape={kind!r}"
            values = [[part["bytes"] for part in parts] for parts in found]
            _ranges(right, values, 0.2 * (i - 1.5), COLOURS[kind], label)
            seen = [fmean(part["measured"] for part in parts) for parts in found]
            places = [place + 0.2 * (i - 1.5) for place in range(len(seen))]
            hollow = "measured, mean" if kind == "entries" else None
            right.plot(places, seen, "o", markersize=7, fillstyle="none", color=COLOURS[kind], label=hollow)
        right.set_ylabel("$E|\\hat X|^2\\;/\\;|X|^2$ at equal bytes")
        right.set_title(f"{result.label}: second moment, lower is better", loc="left", fontsize=11)
        for ax in (left, right):
            ax.set_yscale("log")
            ax.set_xticks(range(len(names)), names, fontsize=8 if len(names) <= 8 else 6)
            ax.tick_params(axis="x", rotation=0 if len(names) <= 8 else 90)
            tidy(ax)
            ax.grid(visible=False, axis="x")
            ax.legend(frameon=False, fontsize=9)
    save(made, title, path)


def variance_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each run: a table by layer and reshape, and one of the whole gradient by round."""
    sheets = []
    for result in results:
        layers = looks(result)
        if layers:
            sheets += [_by_layer(result.label, layers), _by_round(result.label, layers)]
    return sheets


def _by_layer(label: str, layers: Looks) -> Sheet:
    rows: list[tuple[Cell, ...]] = []
    for name, rounds in layers.items():
        for reshape in RESHAPES:
            seen = list(rounds.values())
            parts = [look["spectral"][reshape] for look in seen]
            ratios = [ratio(look, reshape) for look in seen]
            rows.append(
                (
                    name,
                    reshape,
                    f"{parts[0]['rows']} x {parts[0]['columns']}",
                    f"{sum(part['holds'] for part in parts)} of {len(parts)}",
                    ratios[0],
                    ratios[-1],
                    fmean(look["entries"]["floats"] for look in seen),
                    fmean(look["entries"]["bytes"] for look in seen),
                    fmean(look["entries"]["measured"] for look in seen),
                    fmean(part["bytes"] for part in parts),
                    fmean(part["measured"] for part in parts),
                )
            )
    header = (
        "layer",
        "reshape",
        "n x m",
        "3.8 holds",
        "ratio, first",
        "last",
        "entries: equal floats",
        "equal bytes",
        "measured",
        "spectral",
        "measured",
    )
    return Sheet(f"{label}: E|Xhat|^2 / |X|^2 by layer, mean over the rounds looked at", header, tuple(rows))


def _by_round(label: str, layers: Looks) -> Sheet:
    """Second moments of the whole gradient, each layer at the same share of its bytes."""
    rounds = sorted({at for seen in layers.values() for at in seen})
    rows: list[tuple[Cell, ...]] = []
    for at in rounds:
        seen = [look[at] for look in layers.values() if at in look]
        whole = sum(look["frobenius"] ** 2 for look in seen)

        def total(kind: str, key: str, seen: list[Any] = seen, whole: float = whole) -> float:
            return sum(look["frobenius"] ** 2 * _part(look, kind)[key] for look in seen) / whole

        theory = [total("entries", "floats"), *(total(kind, "bytes") for kind in ("entries", *RESHAPES))]
        rows.append((str(at), *theory, *(total(kind, "measured") for kind in ("entries", *RESHAPES))))
    measured = [f"{kind}, measured" for kind in ("entries", *RESHAPES)]
    header = ("round", "entries, equal floats", "entries", *RESHAPES, *measured)
    return Sheet(f"{label}: E|Xhat|^2 / |X|^2 of all these layers together, at equal bytes", header, tuple(rows))


def _part(look: dict[str, Any], kind: str) -> dict[str, Any]:
    return look["entries"] if kind == "entries" else look["spectral"][kind]


def _form(rounds: dict[int, dict[str, Any]]) -> str:
    return "x".join(map(str, next(iter(rounds.values()))["shape"]))


def _ranges(ax: Any, values: Sequence[Sequence[float]], shift: float, colour: str, label: str) -> None:
    """For each place the first value as a dot, and a line over all of them."""
    for place, several in enumerate(values):
        ax.plot([place + shift] * 2, [min(several), max(several)], color=colour, linewidth=2.5, alpha=0.6)
    places = [place + shift for place in range(len(values))]
    ax.plot(places, [v[0] for v in values], "v", color=colour, markersize=5)
    ax.plot(places, [v[-1] for v in values], "s", color=colour, markersize=5, label=label)

# SPDX-License-Identifier: Apache-2.0
"""The parts of a round by scheme, beside the published ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phalanx.tools.report.collect import Result
from phalanx.tools.report.plots import COLOURS, figure, save, tidy
from phalanx.tools.report.sheet import Cell, Sheet

PARTS = ("computation", "communication (modelled)", "encoding", "decoding")
TOLERANCE = 1e-4  # relative error of the gradient with which it counts as recovered

Parts = tuple[float, float, float, float]  # seconds of PARTS
Place = tuple[str, str]  # scheme and attack

# what was published is of 45 workers, s = 5 and networks of these sizes, by the label of the job
PARAMETERS: Mapping[str, int] = {"ResNet-152": 58_156_618, "VGG-19": 20_565_834, "AlexNet": 57_044_810}
# seconds of tables 6.5 to 6.7 of Wang's dissertation
PUBLISHED: Mapping[str, Mapping[Place, Parts]] = {
    "ResNet-152": {
        ("mean", "constant"): (1.64, 27.99, 0, 0.09),
        ("geometric median", "constant"): (1.72, 39.74, 0, 212.31),
        ("repetition", "constant"): (20.81, 39.36, 0.24, 7.74),
        ("cyclic", "constant"): (23.08, 39.36, 5.94, 6.64),
        ("mean", "reverse"): (1.69, 36.27, 0, 0.09),
        ("geometric median", "reverse"): (1.73, 43.98, 0, 161.29),
        ("repetition", "reverse"): (20.71, 42.86, 0.29, 7.54),
        ("cyclic", "reverse"): (23.08, 42.86, 5.95, 6.65),
    },
    "VGG-19": {
        ("mean", "constant"): (0.25, 6.9, 0, 0.03),
        ("geometric median", "constant"): (0.26, 12.47, 0, 74.63),
        ("repetition", "constant"): (2.59, 12.91, 0.20, 3.03),
        ("mean", "reverse"): (0.25, 7.15, 0, 0.03),
        ("geometric median", "reverse"): (0.26, 14.57, 0, 39.02),
        ("repetition", "reverse"): (2.55, 14.66, 0.20, 3.04),
    },
    "AlexNet": {
        ("mean", "constant"): (0.35, 25.72, 0, 0.14),
        ("geometric median", "constant"): (0.37, 27.40, 0, 275.08),
        ("repetition", "constant"): (4.16, 30.71, 0.67, 10.65),
        ("cyclic", "constant"): (3.67, 30.71, 13.55, 12.54),
        ("mean", "reverse"): (0.35, 26.76, 0, 0.11),
        ("geometric median", "reverse"): (0.36, 28.10, 0, 163.48),
        ("repetition", "reverse"): (4.15, 31.76, 0.67, 9.98),
        ("cyclic", "reverse"): (3.66, 31.755, 13.55, 12.54),
    },
}


def measured_parts(found: Mapping[str, Any]) -> dict[Place, Parts]:
    """The seconds of every scheme under every attack, attack by attack."""
    schemes = found["schemes"]
    return {
        (name, attack): (cost["computation_s"], seen["communication_s"], cost["encode_s"], seen["decode_s"])
        for attack in _attacks(found)
        for name, cost in schemes.items()
        for seen in (cost["attacks"][attack],)
    }


def _attacks(found: Mapping[str, Any]) -> list[str]:
    return list(next(iter(found["schemes"].values()))["attacks"])


def published(result: Result) -> dict[Place, Parts | None]:
    """The published value of each number; {} if the dissertation has none for this network and cluster."""
    found, label = result.summary["measured"], result.label
    if (found["workers"], len(found["false"]), found["parameters"]) != (45, 5, PARAMETERS.get(label)):
        return {}
    # its attacks are the library's with their default strength
    return {
        (scheme, attack): PUBLISHED[label].get((scheme.partition(" by ")[0], attack.removesuffix("()")))
        for scheme, attack in measured_parts(found)
    }


def iteration_cost_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each network and attack: the parts of a round beside the published ones, and whether it found the mean."""
    ended = [result for result in results if "measured" in result.summary]
    return [_table(result, attack) for result in ended for attack in _attacks(result.summary["measured"])]


def _table(result: Result, attack: str) -> Sheet:
    found, known = result.summary["measured"], published(result)
    rows: list[tuple[Cell, ...]] = []
    for place, parts in measured_parts(found).items():
        if place[1] != attack:
            continue
        printed = known.get(place)
        row: list[Cell] = [place[0]]
        for i, seconds in enumerate((*parts, sum(parts))):
            row.append(seconds)
            if known:
                row.append(None if printed is None else (*printed, sum(printed))[i])
        seen = found["schemes"][place[0]]["attacks"][attack]
        row += [seen["bytes_in"] / 1e6, seen["error"], recovered(seen)]
        rows.append(tuple(row))
    timed = [word for part in (*PARTS, "sum") for word in ((part, "paper") if known else (part,))]
    header = ("seconds", *timed, "MB in", "error", "recovered")
    return Sheet(f"{_title(result)}: {attack}", header, tuple(rows))


def recovered(seen: Mapping[str, Any]) -> str:
    """Whether the server recovers the mean of the honest gradients in spite of the false rows."""
    return "same bits" if seen["exact"] else "yes" if seen["error"] <= TOLERANCE else "no"


def plot_iteration_cost(results: Sequence[Result], title: str, path: Path) -> None:
    """A row of plots for each network: the parts of a round as stacked bars, measured and, where known, published."""
    ended = [result for result in results if "measured" in result.summary]
    heights = [0.3 * len(measured_parts(result.summary["measured"])) + 1.2 for result in ended]
    made = figure(13, max(2.0, sum(heights) + 0.8))
    wide = 2 if any(map(published, ended)) else 1
    axes: Any = made.subplots(max(1, len(ended)), wide, squeeze=False, height_ratios=heights or None)
    for result, (left, *right) in zip(ended, axes, strict=False):
        _bars(left, measured_parts(result.summary["measured"]), _title(result))
        known = published(result)
        for ax in right:
            if known:
                _bars(ax, known, "published: 46 machines, communication measured")
                ax.set_yticklabels([])
            else:
                ax.set_axis_off()
    if ended:
        handles, labels = axes[0][0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), frameon=False)
    save(made, title, path)


def _bars(ax: Any, parts: Mapping[Place, Parts | None], title: str) -> None:
    places = list(range(len(parts)))
    ends = [0.0] * len(parts)
    for i, (name, colour) in enumerate(zip(PARTS, COLOURS, strict=False)):
        widths = [seconds[i] if seconds is not None else 0.0 for seconds in parts.values()]
        ax.barh(places, widths, left=ends, color=colour, height=0.7, label=name)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, seconds, end in zip(places, parts.values(), ends, strict=True):
        ax.text(end, place, " -" if seconds is None else f" {end:.3g}", va="center", fontsize=8)
    ax.set_yticks(places, [f"{scheme}, {attack.removesuffix('()')}" for scheme, attack in parts])
    ax.set_xlim(0, 1.12 * max(ends))
    ax.invert_yaxis()
    ax.set_xlabel("seconds of a round")
    ax.set_title(title, loc="left", fontsize=10)
    tidy(ax)
    ax.grid(visible=False, axis="y")


def _title(result: Result) -> str:
    found = result.summary["measured"]
    count, false = found["workers"], len(found["false"])
    return f"{result.label}: {count} rows of {found['entries']:,} in {found['rows_in']}, {false} of them false"

# SPDX-License-Identifier: Apache-2.0
"""The study and the request that a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from phalanx.backdoors.edges import EdgeCases
from phalanx.core.expression import require
from phalanx.core.parser import parse
from phalanx.tools.redteam.custom_setting import YOURS, Terms, own_grid
from phalanx.tools.redteam.findings import RedTeamRequest
from phalanx.tools.redteam.grid import grid_of, narrowed, seeded
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study
from phalanx.training.phase import Run


def build_red_team_study(
    source: str,
    scale: str | None = None,
    own: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    seed: int | None = None,
    seeds: int = 1,
) -> tuple[Study, RedTeamRequest]:
    """The runs of a red team study and what they are for, checked before anything is computed.

    Args:
        source: a recipe's name, the expression of a run, or a file that holds one.
        own: the fields of `Terms` for a run of one's own; `edges` as text.
        only: attacks, rules, or labels "attack: rule"; all when empty.
    Raises:
        ValueError: a name that is not there, or a run that cannot be attacked.
    """
    asked = build_study(source, scale, settings, (), seed)
    terms, notes, judged = dict(own or {}), (), ()
    if asked.scale is None:
        source = next(iter(asked.jobs.values())).__repr__()
        runs, notes = _own(asked, terms)
        judged = () if only else (YOURS,)
    else:
        named = ", ".join(f"--{name.replace('attacker', 'attacker-share')}" for name in terms)
        require(not terms, f"{named} belongs to a run of your own, and {source} is a recipe; leave it out")
        runs = grid_of(source, asked.jobs)
    runs = seeded(narrowed(runs, only), seeds)
    recipe = "own-setting" if asked.scale is None else asked.recipe
    return Study(recipe, asked.scale, asked.settings, runs, asked.notices), RedTeamRequest(source, judged, notes=notes)


def _own(asked: Study, terms: dict[str, Any]) -> tuple[dict[str, Run], tuple[str, ...]]:
    (job,) = asked.jobs.values()
    if not isinstance(job, Run):
        raise ValueError(f"phalanx redteam takes a run(...), got {job!r}")
    if "edges" not in terms:
        raise ValueError(
            "a run of your own needs --edges, such as \"own_edges('folder', target=1)\", or rare_styles() for images"
        )
    edges = parse(terms.pop("edges"))
    if not isinstance(edges, EdgeCases):
        raise ValueError(f"--edges takes edge cases, such as rare_styles(), got {edges!r}")
    grid = own_grid(job, Terms(edges, **terms))
    measured = "" if "norm" in terms else ", measured in the first round"
    norm = f"Balls and thresholds are multiples of {grid.norm:g}, the length of an honest client's change{measured}."
    return grid.runs, (norm, *(f"Left out: {sentence}" for sentence in grid.left_out))

# SPDX-License-Identifier: Apache-2.0
"""The request of a red team study, and its findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from phalanx.core.expression import require
from phalanx.core.registry import suggest
from phalanx.tools.redteam.advice import advice
from phalanx.tools.redteam.ci_gate import Outcome, exit_code, gate
from phalanx.tools.redteam.policy import policy
from phalanx.tools.redteam.verdict import Limits, Standing, standings
from phalanx.tools.report.backdoors import cell_of
from phalanx.tools.report.collect import Result
from phalanx.tools.runner.study import Study

REPORT = "report.html"
FEW_EXAMPLES = 5  # that a limit stands on


@dataclass(frozen=True)
class RedTeamRequest:
    """The request of a red team study besides its runs; `redteam.json` in its folder.

    Args:
        source: a recipe's name, or the setting of one's own as an expression.
        judged: the rules that policies and advice are about; all when empty.
        policies: as they were given.
        notes: sentences for the report: what was measured for the grid, which rules were left out and why.
    """

    source: str
    judged: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    policies: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> RedTeamRequest:
        """The request that `asdict` described."""
        lists = {name: tuple(plain[name]) for name in ("judged", "policies", "notes")}
        return RedTeamRequest(source=plain["source"], limits=Limits(**plain["limits"]), **lists)

    def check(self, study: Study) -> None:
        """Raises ValueError for a policy that cannot be read, or a rule that is not in the grid."""
        for text in self.policies:
            policy(text)
        rules = list(dict.fromkeys(cell_of(label)[1] for label in study.jobs))
        for name in self.judged:
            require(name in rules, f"no rule of the grid is called {name!r}; {suggest(name, rules)}")


@dataclass(frozen=True)
class Findings:
    """Verdicts on a grid, and what follows from them.

    Args:
        results: the runs that have begun.
        about: versions, machine, commit and command line.
    """

    path: Path
    request: RedTeamRequest
    study: Study
    results: Sequence[Result]
    about: Mapping[str, Any]

    @cached_property
    def standings(self) -> list[Standing]:
        """All rules of the grid."""
        return standings(self.study.runs, self.results, self.request.limits)

    @cached_property
    def judged(self) -> list[Standing]:
        """The rules that policies and advice are about."""
        names = self.request.judged
        return [s for s in self.standings if s.attacked and (not names or s.rule in names)]

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """What became of each policy."""
        return gate([policy(text) for text in self.request.policies], self.judged)

    @property
    def exit_code(self) -> int:
        """The exit code of the command, for a deployment gate."""
        return exit_code(self.outcomes)

    @property
    def missing(self) -> list[str]:
        """Labels of the runs that have not ended."""
        ended = {result.name for result in self.results if result.summary}
        return [label for label in self.study.jobs if label not in ended]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all runs."""
        return sorted({job.seed for job in self.study.jobs.values()})

    @property
    def notices(self) -> list[str]:
        """What to know of the numbers: how few examples a limit stands on, and which cells `--only` left out."""
        limit = self.request.limits.excess
        counts = sorted({cell.examples for s in self.standings for cell in s.attacked if cell.examples})
        few = [
            f"a limit of {100 * limit:g} points of attack success on {count} examples is {limit * count:.3g} of them"
            for count in counts
            if limit * count < FEW_EXAMPLES
        ]
        rules = [standing.rule for standing in self.standings]
        attacks = dict.fromkeys(cell.attack for standing in self.standings for cell in standing.cells.values())
        there = {(cell.attack, s.rule) for s in self.standings for cell in s.cells.values()}
        absent = [f"{attack}: {rule}" for attack in attacks for rule in rules if (attack, rule) not in there]
        shown = "; ".join(absent[:6]) + (f"; and {len(absent) - 6} more" if len(absent) > 6 else "")
        return [*few, *([f"not in this grid, so not compared: {shown}"] if absent else [])]

    @property
    def advice(self) -> list[str]:
        """Sentences that say what to change."""
        return advice(self.standings, self.judged)

    def to_json(self) -> dict[str, Any]:
        """The findings as plain values."""
        return {
            "source": self.request.source,
            "scale": self.study.scale,
            "folder": str(self.path),
            "report": str(self.path / REPORT),
            "finished": not self.missing,
            "missing": self.missing,
            "seeds": self.seeds,
            "limits": asdict(self.request.limits),
            "judged": [standing.rule for standing in self.judged],
            "rules": [standing.to_json() for standing in self.standings],
            "policies": [outcome.to_json() for outcome in self.outcomes],
            "exit_code": self.exit_code,
            "advice": self.advice,
            "notes": [*self.request.notes, *self.notices],
        }

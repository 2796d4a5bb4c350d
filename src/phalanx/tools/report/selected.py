# SPDX-License-Identifier: Apache-2.0
"""The clients that a rule chooses: attackers, honest clients with edge cases, and the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from phalanx.tools.report.collect import Result
from phalanx.training.phase import Run

Role = Literal["attacker", "honest, edge cases", "honest"]
ROLES: tuple[Role, ...] = ("attacker", "honest, edge cases", "honest")


@dataclass(frozen=True)
class Selected:
    """A worker of a run.

    Args:
        role: an attacker is Byzantine in some round; honest ones are told apart by whether they hold edge cases.
        rounds: in which it took part.
        chosen: of them, those in which the rule named its row; None where the rule names none.
    """

    worker: int
    role: Role
    rounds: int
    chosen: int | None


def selected(result: Result) -> list[Selected]:
    """Every worker of a run, by its number.

    Rounds before attacks and lost ones count. Who holds edge cases is known by the run's partition: they are the
    examples added to the data, as by `joined`, that `dealt` has given it.
    """
    run = result.job
    assert isinstance(run, Run)
    lines = result.metrics()
    everyone = range(run.workers)
    rounds = Counter(worker for line in lines for worker in line.get("clients", everyone))
    taken = Counter(worker for line in lines for worker in line.get("chosen", ()))
    names = any("chosen" in line for line in lines)
    attackers = {worker for line in lines for worker in line["byzantine"]}
    with_edges = holders(run)

    def role(worker: int) -> Role:
        return "attacker" if worker in attackers else "honest, edge cases" if worker in with_edges else "honest"

    return [Selected(w, role(w), rounds[w], taken[w] if names else None) for w in everyone]


def holders(run: Run) -> frozenset[int]:
    """The workers that have some of the examples that were added to the data.

    Raises:
        MissingData: the run's data are not on this machine.
    """
    data = run.data.load()
    if not data.added:
        return frozenset()
    first = len(data.train_y) - data.added
    parts = run.partition.parts(data, run.workers, run.seed)
    return frozenset(worker for worker, part in enumerate(parts) if bool((part >= first).any()))

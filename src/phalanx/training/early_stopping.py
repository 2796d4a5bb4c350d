# SPDX-License-Identifier: Apache-2.0
"""A run that stops when its score does not improve any more, and keeps its best model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from phalanx.core.expression import Expression, method, require
from phalanx.core.trees import State
from phalanx.training.task import Metric


@method("early_stopping", "stopping")
class EarlyStopping(Expression):
    """Stops a run after some tests of the model that do not improve the task's score.

    Which score is better the task knows: an accuracy that is higher, an error that is lower. A score that is no finite
    number improves nothing.

    Args:
        patience: tests without an improvement after which the run stops, >= 1; the run's `evaluate_every` says how many
            rounds lie between two of them.
        least: the difference that counts as an improvement, >= 0, in the unit of the score.
        restore: the run ends with the model of its best test; else with the last one.
    """

    patience: int = 5
    least: float = 0.0
    restore: bool = True

    def validate(self) -> None:
        require(self.patience >= 1, f"early_stopping needs patience >= 1, got patience={self.patience}")
        ok = 0 <= self.least < float("inf")
        require(ok, f"early_stopping needs a finite least >= 0, got least={self.least}")


@dataclass(frozen=True)
class BestModel:
    """The best test of a run so far.

    Args:
        value: of the score.
        rounds_done: rounds that had ended by then.
        tests_since: tests without an improvement since.
        model: the model and its optimizer, as a tree.
    """

    value: float
    rounds_done: int
    tests_since: int
    model: State

    def to_state(self) -> State:
        """The best test as a tree for a checkpoint; `from_state` is the inverse."""
        return {
            "value": self.value,
            "rounds_done": self.rounds_done,
            "tests_since": self.tests_since,
            "model": self.model,
        }

    @staticmethod
    def from_state(state: State) -> BestModel | None:
        """Reads a tree that `to_state` wrote; None for an empty one."""
        if not state:
            return None
        return BestModel(state["value"], state["rounds_done"], state["tests_since"], state["model"])

    def to_json(self) -> dict[str, Any]:
        """The numbers for the results."""
        return {"value": self.value, "rounds": self.rounds_done, "tests_since": self.tests_since}


def after_test(
    rule: EarlyStopping, score: Metric, best: BestModel | None, value: float | None, tested: BestModel
) -> BestModel | None:
    """The best test after another one.

    Args:
        value: of the score; None for no finite number.
        tested: the model that was tested, if it is better.
    """
    if best is None:
        return None if value is None else tested
    margin = rule.least if score.higher_is_better else -rule.least
    if value is not None and score.better(value, best.value + margin):
        return tested
    return replace(best, tests_since=best.tests_since + 1)

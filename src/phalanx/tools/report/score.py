# SPDX-License-Identifier: Apache-2.0
"""The number by which runs are compared: the accuracy of a classification, or the score of another task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """What the number is.

    Args:
        unit: behind the number; "%" for a share in [0, 1] that is shown as a percentage.
    """

    name: str = "accuracy"
    higher_is_better: bool = True
    unit: str = "%"

    @property
    def factor(self) -> float:
        """What a number is multiplied by before it is shown."""
        return 100.0 if self.unit == "%" else 1.0

    @property
    def title(self) -> str:
        """The name and the unit, for an axis: "rmse (mmHg), lower is better"."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.name}{unit}{'' if self.higher_is_better else ', lower is better'}"

    def words(self, value: float | None) -> str:
        """A number as people read it: "96.7 %", "0.0123", "54.1 mmHg"."""
        if value is None:
            return "-"
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        return f"{value:.4g} {self.unit}".rstrip()


ACCURACY = Score()


def is_tested(line: Mapping[str, Any]) -> bool:
    """Whether a round's metrics or a summary have the result of a test."""
    return "accuracy" in line or "score" in line


def score_of(line: Mapping[str, Any]) -> Score:
    """What the number of a tested line is."""
    known = line.get("score")
    return ACCURACY if known is None else Score(known["name"], known["higher_is_better"], known["unit"])


def value_of(line: Mapping[str, Any]) -> float | None:
    """The number of a tested line."""
    known = line.get("score")
    return line.get("accuracy") if known is None else known["value"]


def common_score(scores: Iterable[Score]) -> Score | None:
    """The score that all runs have; None if they differ."""
    different = set(scores)
    return different.pop() if len(different) == 1 else ACCURACY if not different else None

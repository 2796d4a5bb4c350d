# SPDX-License-Identifier: Apache-2.0
"""What a recipe may do instead of training: a measurement, as one expression."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from phalanx.core.expression import Expression
from phalanx.core.parser import parse
from phalanx.training.phase import Run


class Measurement(Expression, ABC):
    """Numbers that are computed without a training run; its repr is all that they depend on.

    Under torchrun rank 0 measures and the others wait, ten minutes at most. A measurement that is stopped begins anew.

    Args:
        seed: of everything random in it.
    """

    seed: int

    def check(self) -> None:
        """Raises ValueError for what cannot be measured."""
        return

    @abstractmethod
    def measure(self, on_progress: Callable[[str], None]) -> dict[str, Any]:
        """What was found, as plain values.

        Args:
            on_progress: to be called with a few words on what comes next.
        """


Job = Run | Measurement


def parse_job(text: str, source: str) -> Job:
    """A run or a measurement from its expression; `source` names the file or option in an error."""
    job = parse(text)
    if not isinstance(job, Run | Measurement):
        raise ValueError(f"{source} should be a run(...), got {job!r}; a measurement will do as well")
    return job

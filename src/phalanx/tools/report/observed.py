# SPDX-License-Identifier: Apache-2.0
"""What observers have logged."""

from __future__ import annotations

from typing import Any

from phalanx.core.parser import parse
from phalanx.tools.report.collect import Result
from phalanx.training.observers.observer import Observer


def observed(result: Result, kind: type[Observer]) -> dict[Any, dict[int, dict[str, Any]]]:
    """observer -> round -> what it returned, for the observers of one type that a run has."""
    by_expression: dict[Any, dict[int, dict[str, Any]]] = {}
    for line in result.metrics():
        for text, values in line.get("observed", {}).items():
            observer = parse(text)
            if isinstance(observer, kind):
                by_expression.setdefault(observer, {})[line["step"]] = values
    return by_expression

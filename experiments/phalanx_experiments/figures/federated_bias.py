# SPDX-License-Identifier: Apache-2.0
"""Accuracies on images whose colours mislead, beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence

from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Sheet
from phalanx.tools.report.tables import percent
from phalanx_experiments.figures.federated import federated_tables

# section 5.4.6, in per cent: by SGD, and by AMSGrad
PUBLISHED = {
    "entire data": (78.71, 75.91),
    "colour balanced": (87.79, 87.81),
    "no bias": (91.23, 88.5),
}


def bias_tables(results: Sequence[Result]) -> list[Sheet]:
    """What each method took, and how far it is from training on images that mislead nobody."""
    reached = {run.label: run.accuracy for run in results}
    goal = reached.get("no bias")
    rows = []
    for label, accuracy in reached.items():
        behind = None if accuracy is None or goal is None else 100 * (goal - accuracy)
        sgd, amsgrad = (None if p is None else f"{p} %" for p in PUBLISHED.get(label, (None, None)))
        rows.append((label, percent(accuracy, 2), behind, sgd, amsgrad))
    header = ("method", "accuracy", "points behind no bias", "published, SGD", "published, AMSGrad")
    return [*federated_tables(results), Sheet("figure 5.4", header, tuple(rows))]

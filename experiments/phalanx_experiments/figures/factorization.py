# SPDX-License-Identifier: Apache-2.0
"""Seconds of factorizing and of training steps, beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence

from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Cell, Sheet

# tables 4.19, 4.6 and 4.20, of a V100
PUBLISHED_SVD_S = {
    "resnet50": 2.2972,
    "wide-resnet50-2": 4.8700,
    "vgg19-cifar": 1.5198,
    "resnet18-cifar": 1.3244,
    "lstm-wikitext2": 6.5791,
    "transformer-multi30k": 5.4104,
}
PUBLISHED_SPEEDUP = {"vgg19-cifar": (1.23, 1.01), "resnet18-cifar": (1.48, 1.16)}


def svd_tables(results: Sequence[Result]) -> list[Sheet]:
    """Seconds of one factorization."""
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        if "measured" in result.summary:
            measured = result.summary["measured"]
            published = PUBLISHED_SVD_S.get(result.label.split(",")[0])
            rows.append((result.label, measured["layers"], measured["seconds"], measured["stdev"], published))
    return [Sheet("one factorization", ("network", "matrices", "seconds", "stdev", "V100, published"), tuple(rows))]


def step_tables(results: Sequence[Result]) -> list[Sheet]:
    """Milliseconds of a step, and speed-ups measured, promised and published."""
    rows: list[tuple[Cell, ...]] = []
    for result in results:
        if "measured" in result.summary:
            measured = result.summary["measured"]
            told = PUBLISHED_SPEEDUP.get(result.label.split(",")[0], (None, None))
            times = (1e3 * measured["full_s"], 1e3 * measured["hybrid_s"])
            rows.append((result.label, *times, measured["speedup"], measured["promised"], *told))
    header = ("network", "full ms", "hybrid ms", "speed-up", "by MACs", "published", "published, tuned cuDNN")
    return [Sheet("a training step", header, tuple(rows))]

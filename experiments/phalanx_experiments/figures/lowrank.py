# SPDX-License-Identifier: Apache-2.0
"""Accuracy, parameters and seconds of networks that became smaller during training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from phalanx.tools.report.collect import Result
from phalanx.tools.report.sheet import Cell, Sheet
from phalanx_experiments.figures.convergence import panels_of, short


def lowrank_tables(results: Sequence[Result]) -> list[Sheet]:
    """For each panel: accuracy, parameters at the end, bytes, and seconds of a round before and after the surgery."""
    return [_table(name, runs) for name, runs in panels_of(results).items()]


def _table(name: str, runs: Sequence[Result]) -> Sheet:
    rows: list[tuple[Cell, ...]] = []
    for run in runs:
        before, after = _seconds(run)
        bytes_up = run.summary.get("bytes_up")
        rows.append(
            (
                short(run),
                None if run.accuracy is None else f"{100 * run.accuracy:.2f} %",
                run.summary.get("perplexity"),
                run.summary.get("bleu"),
                run.summary.get("parameters"),
                None if bytes_up is None else bytes_up / 1e6,
                None if before is None else 1e3 * before,
                None if after is None else 1e3 * after,
            )
        )
    # images have neither perplexity nor BLEU
    kept = [i for i in range(8) if i not in (2, 3) or any(row[i] is not None for row in rows)]
    header = (
        "network",
        "accuracy",
        "perplexity",
        "BLEU",
        "parameters at the end",
        "MB sent",
        "gradient ms, at first",
        "ms, at the end",
    )
    return Sheet(
        name or "full and factorized",
        tuple(header[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
    )


def _seconds(run: Result) -> tuple[float | None, float | None]:
    """The median seconds of the workers' computation in a round, before the first surgery and after the last."""
    lines = run.metrics()
    cuts = [i for i, line in enumerate(lines) if "operated" in line]
    first, last = (cuts[0], cuts[-1]) if cuts else (len(lines), 0)
    before, after = ([line["work_s"] for line in part[1:]] for part in (lines[:first], lines[last:]))
    return tuple(median(part) if part else None for part in (before, after))  # type: ignore[return-value]

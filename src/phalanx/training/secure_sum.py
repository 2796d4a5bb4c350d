# SPDX-License-Identifier: Apache-2.0
"""Checks of a scheme whose server may see only the sum of the rows."""

from __future__ import annotations

from phalanx.aggregators.mean import Mean
from phalanx.core.expression import require
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage, TooFewRows
from phalanx.core.wire_stage import WireStage, stages_of

LEAST = 2  # rows in a sum; a sum of one row is the row itself


def check_secure(scheme: Stage, count: int) -> None:
    """Raises ValueError unless a scheme sums the rows of `count` workers on the way to the server.

    That is what `reduce` does: behind it there is one row, so every stage there sees the mean and nothing else.
    """
    require(count >= LEAST, f"secure=True hides a row among others, and {count} takes part; let {LEAST} or more")
    stages = stages_of(scheme)
    wire_index = next((i for i, stage in enumerate(stages) if isinstance(stage, WireStage)), None)
    if wire_index is None:
        return
    wire, rows = stages[wire_index], stages[wire_index].rows_out(count)
    require(wire.assign(count) is None, _needs(wire))
    for stage in stages[wire_index + 1 :]:
        require(rows == 1 or isinstance(stage, Mean), _needs(stage))
        try:
            rows = stage.rows_out(rows)
        except TooFewRows:
            raise ValueError(_needs(stage)) from None
    raise ValueError(
        f"secure=True shows the server the sum of the rows only, and {wire!r} hands them to its gate one by one; write "
        "reduce(dense()) in place of it and mean()"
    )


def check_sum(secure: bool, result: Stack) -> None:
    """Raises TooFewRows if a sum that must hide its rows has a single one."""
    if secure and len(result.sources[0]) < LEAST:
        raise TooFewRows(f"one row has arrived, and secure=True sums {LEAST} or more", result.notes)


def _needs(stage: Stage) -> str:
    return (
        f"secure=True shows the server the sum of the rows only, and {stage!r} needs them one by one; let the workers "
        "clip, as in chain(clip(norm=1.0), reduce(dense())), or leave secure=True out"
    )

# SPDX-License-Identifier: Apache-2.0
"""The rows on which laws are checked: honest ones, hostile ones, and messages that arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from phalanx.core.codec import Gather
from phalanx.core.layout import Layout
from phalanx.core.payload import BadPayload, Payload
from phalanx.core.round import Round
from phalanx.core.stack import Stack
from phalanx.core.stage import Stage
from phalanx.core.world import LocalCollective

WORKERS = 15
LAYOUT = Layout(
    ("a.weight", "a.bias", "empty", "b.weight", "b.running_mean"),
    (torch.Size([3, 4]), torch.Size([5]), torch.Size([0]), torch.Size([2, 2]), torch.Size([3])),
    num_installed=1,
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CENTRE = 1.0 - 2.0 * (torch.arange(24) % 3 == 0).double()  # of honest rows: signs, so that sign rules estimate it too


def honest_stack(
    stage: Stage | None = None,
    n: int = WORKERS,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    run_seed: int = 0,
) -> Stack:
    """Rows (n, 24) around one centre, equal for workers to whom the stage assigns equal work; weights differ a little.

    The last three of the 24 entries are installed values.

    Args:
        seed: of the rows.
        run_seed: of the round in which the stage gets them.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = CENTRE + 0.3 * torch.randn(n, LAYOUT.d, generator=generator, dtype=torch.float64)
    allocation = stage.assign(n, run_seed) if stage is not None else None
    if allocation is not None and allocation.separate:
        return Stack.of_units(rows.to(dtype), allocation, replace(LAYOUT, dtype=dtype))
    if allocation is not None:
        rows = allocation.weights_matrix @ rows[: allocation.num_units]
    weights = torch.arange(n, dtype=torch.float64) % 3 + 2
    weights = weights if allocation is None else torch.ones(n, dtype=torch.float64)
    return Stack(rows.to(dtype), replace(LAYOUT, dtype=dtype), tuple((i,) for i in range(n)), weights)


def hostile_stacks(stage: Stage | None = None, n: int = WORKERS, seed: int = 0) -> Iterator[tuple[str, Stack]]:
    """Stacks that no one expects, each with its name.

    Zeros, tiny, huge and equal rows, a row of NaN or Inf, in float16, float32 and float64; strided rows; one row; rows
    of no, one and seven entries.
    """
    for dtype in (torch.float16, torch.float32, torch.float64):
        stack = honest_stack(stage, n, dtype, seed, seed)
        largest, name = min(torch.finfo(dtype).max / 4, 1e17), str(dtype).removeprefix("torch.")
        yield f"{name} zeros", stack.with_rows(torch.zeros_like(stack.rows))
        yield f"{name} tiny rows", stack.with_rows(stack.rows * torch.finfo(dtype).tiny)
        yield f"{name} huge rows", stack.with_rows(stack.rows.clamp(-2, 2) * (largest / 2))
        yield f"{name} equal rows", stack.with_rows(stack.rows[:1].repeat(n, 1))
        for value in (torch.nan, torch.inf):
            rows = stack.rows.clone()
            rows[2] = value
            yield f"{name} rows with one of {value}", stack.with_rows(rows)
    stack = honest_stack(stage, n, seed=seed, run_seed=seed)
    yield "strided rows", stack.with_rows(stack.rows.t().contiguous().t())
    for d in (0, 1, 7):
        yield f"rows of {d} entries", replace(stack, rows=stack.rows[:, :d], layout=Layout.flat(d))
    yield "one row", honest_stack(None, 1, seed=seed)


def open_messages(wire: Gather, arrived: Sequence[Payload | BadPayload], sent: Stack) -> Stack:
    """What a wire stage makes of these messages, one of each worker, at the server."""

    class Arrived(LocalCollective):
        def gather(self, payloads: object, limit_bytes: int) -> list[Payload | BadPayload]:
            return list(arrived)

    return wire.receive([], sent, Round(world=Arrived(len(arrived))))

"""One round of a scheme on fixed rows, in any world."""

from typing import Any

import torch

import phalanx as px

D = 37


def outcome(scheme: str, world: px.Collective, byzantine: list[int]) -> dict[str, Any]:
    torch.set_num_threads(1)  # equal threads give equal bits in every process
    generator = torch.Generator().manual_seed(5)
    # pairs of workers hold equal rows, so that votes have something to agree on
    rows = torch.randn(world.size, D, generator=generator)
    allocation = px.parse(scheme).assign(world.size, seed=4, index=2)
    if allocation is not None:
        rows = allocation.weights_matrix.float() @ rows[: allocation.num_units]
    stack = px.Stack.of(rows[list(world.local_workers)], ids=world.local_workers)
    round = px.Round(index=2, seed=4, byzantine=frozenset(byzantine), world=world)
    result, _ = px.parse(scheme)(stack, None, round)
    return {
        "row": result.rows[0].tolist(),
        "excluded": sorted({n.worker for n in result.notes if n.kind == "excluded"}),
        "bytes": sum(n.value for n in result.notes if n.kind == "bytes"),
    }

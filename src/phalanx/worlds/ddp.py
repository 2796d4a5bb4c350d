# SPDX-License-Identifier: Apache-2.0
"""A scheme as the communication hook of DistributedDataParallel."""

# no `from __future__ import annotations` here: register_comm_hook compares the annotations of the hook with real types

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from phalanx.attack import Threat
from phalanx.exchange import Courier, as_scheme
from phalanx.layout import Layout
from phalanx.stage import Stage
from phalanx.worlds.group import GroupWorld


def ddp_hook(
    model: DistributedDataParallel,
    scheme: Stage | str,
    *,
    byzantine: Threat | None = None,
    seed: int = 0,
) -> Courier:
    """Registers a scheme as the model's communication hook; gloo and NCCL.

    Each bucket is exchanged within the hook itself, in the order in which DDP makes them on every rank, and never waits
    inside a callback; so it cannot deadlock, and it does not overlap with the rest of backward.

    Args:
        model: wrapped in DistributedDataParallel.
        scheme: a stage or its expression, of a scope below "vector".
        byzantine: ranks that misbehave on purpose, for drills.
        seed: of the scheme's random numbers; equal on every rank.
    Returns:
        The courier: `state_dict` and `load_state_dict` for checkpoints, `ledger` with bytes and accusations.
    Raises:
        ValueError: the scheme needs the whole row, or does not fit the number of ranks.
    """
    stage = as_scheme(scheme)
    if stage.scope == "vector":
        raise ValueError(
            f"{stage!r} needs whole rows and DDP hands out buckets; "
            "call phalanx.exchange(model, scheme) after backward() instead"
        )
    names = {id(p): n for n, p in model.module.named_parameters()}
    courier = Courier(stage, GroupWorld(group=model.process_group), byzantine, seed)

    def hook(
        state: Courier,
        bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
    ) -> torch.futures.Future[torch.Tensor]:
        parameters, buffer = bucket.parameters(), bucket.buffer()
        shapes = tuple(p.shape for p in parameters)
        layout = Layout(tuple(names[id(p)] for p in parameters), shapes, dtype=buffer.dtype)
        # DDP reuses the buffer while a memory may still point at it
        row, _ = state.carry(buffer.clone(), layout, part=bucket.index())
        if bucket.is_last():
            state.index += 1
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(torch.zeros_like(buffer) if row is None else row)
        return done

    model.register_comm_hook(courier, hook)
    return courier

# SPDX-License-Identifier: Apache-2.0
"""A job: scatter and gather side by side through exchange, the DDP hook and DiLoCo, and the bytes of every rank."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import phalanx as px
from phalanx.distributed.backend import TorchBackend
from phalanx.distributed.process_group import ProcessGroupCollective

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, ranks = dist.get_rank(), dist.get_world_size()


class Counted(TorchBackend):
    """Counts the bytes that this rank sends; in a ring each message passes every rank but its own."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def all_gather(self, mine: Tensor) -> list[Tensor]:
        self.sent += (self.size - 1) * mine.numel() * mine.element_size()
        return super().all_gather(mine)

    def send_recv(self, outgoing: Mapping[int, Tensor], incoming: Mapping[int, int]) -> dict[int, Tensor]:
        self.sent += sum(tensor.numel() * tensor.element_size() for tensor in outgoing.values())
        return super().send_recv(outgoing, incoming)

    def all_gather_uneven(self, mine: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        # padded or in pieces: both are made of the two calls above
        return super().all_gather_uneven(mine, sizes)


def bytes_of(scheme: str) -> int:
    """What a rank sends in a later round, when lengths travel with the payloads."""
    backend = Counted()
    world = ProcessGroupCollective(backend=backend)
    layout = px.Layout(("a", "b", "c"), (torch.Size([500, 1000]), torch.Size([1001]), torch.Size([300, 999])))
    stage, state = px.parse(scheme), None
    for index in range(task["rounds"]):
        backend.sent = 0
        row = torch.randn(1, layout.d, generator=torch.Generator().manual_seed(100 * index + rank))
        stack = px.Stack(row, layout, ((rank,),), torch.ones(1, dtype=torch.float64))
        _, state = stage(stack, state, px.Round(index, world=world))
    return backend.sent


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(60, 200), nn.BatchNorm1d(200), nn.Tanh(), nn.Linear(200, 150), nn.Linear(150, 10))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 60, generator=generator), torch.randint(10, (8,), generator=generator)


def train(model: nn.Module, plain: nn.Module, after: Any = None) -> list[float]:
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    for step in range(task["steps"]):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        if after is not None:
            after()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten()[::7] for p in plain.parameters()]).tolist()


def through_exchange(scheme: str) -> Any:
    model = build()
    exchange = px.exchange(model, scheme, byzantine=px.adversary.workers((1,)), exclude_after=2)
    measured = []
    weights = train(model, model, lambda: measured.append(exchange()))
    kept = ("excluded", "accused", "far", "lost", "chosen")
    return {"weights": weights, "rounds": [{k: m.get(k) for k in kept} for m in measured]}


def through_hook(scheme: str) -> Any:
    plain = build()
    model = DistributedDataParallel(plain, bucket_cap_mb=0.05, broadcast_buffers=False)
    hook = px.ddp.register(model, scheme, byzantine=px.adversary.workers((1,)))
    weights = train(model, plain)
    return {"weights": weights, "buckets": hook.ledger.rounds, "lost": hook.ledger.lost_rounds}


def through_diloco(scheme: str) -> Any:
    model = build()
    outer = px.DiLoCo(model, scheme, every=2, byzantine=px.adversary.workers((1,)))
    return {"weights": train(model, model, outer)}


ways = {"exchange": through_exchange, "hook": through_hook, "diloco": through_diloco}
result: dict[str, Any] = {way: {s: ways[way](s) for s in task[way]} for way in ways}
result["bytes"] = {}
for scheme in task["bytes"]:
    sent = torch.tensor([bytes_of(scheme)])
    everyone = [torch.empty_like(sent) for _ in range(ranks)]
    dist.all_gather(everyone, sent)
    result["bytes"][scheme] = [int(each) for each in everyone]
if rank == 0:
    (folder / "result.json").write_text(json.dumps(result))
dist.barrier()
dist.destroy_process_group()

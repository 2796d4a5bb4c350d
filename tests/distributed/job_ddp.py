"""A job: the same steps through the DDP hook and through `exchange`, on a model with several buckets."""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import phalanx as px

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, ranks = dist.get_rank(), dist.get_world_size()


def build() -> nn.Module:
    torch.manual_seed(0)
    # 4 x 600 x 600 floats: one bucket at first, four of at least 1 MB once DDP has rebuilt them
    return nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(600, 600), nn.Tanh())], nn.Linear(600, 10))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 600, generator=generator), torch.randint(10, (8,), generator=generator)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, after: Any = None) -> None:
    for step in range(first, last):
        x, y = batch(step)
        nn.functional.cross_entropy(model(x), y).backward()
        if after is not None:
            after()
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten()[::97] for p in model.parameters()]).tolist()


def through_hook(scheme: str, save_at: int | None = None) -> dict[str, Any]:
    plain = build()
    model = DistributedDataParallel(plain, bucket_cap_mb=1)
    hook = px.ddp.register(model, scheme, byzantine=px.adversary.workers((1,)))
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    if save_at is None:
        steps(model, optimizer, 0, task["steps"])
    else:
        steps(model, optimizer, 0, save_at)
        saved = {"model": plain.state_dict(), "hook": hook.state_dict()}
        plain = build()
        plain.load_state_dict(saved["model"])
        model = DistributedDataParallel(plain, bucket_cap_mb=1)
        hook = px.ddp.register(model, scheme, byzantine=px.adversary.workers((1,)))
        hook.load_state_dict(saved["hook"])
        steps(model, torch.optim.SGD(plain.parameters(), 0.1), save_at, task["steps"])
    buckets = hook.ledger.rounds // (task["steps"] - (save_at or 0)) if save_at is None else None
    return {"weights": weights(plain), "buckets": buckets, "bytes": hook.ledger.bytes_up}


def through_exchange(scheme: str) -> dict[str, Any]:
    model = build()
    exchange = px.exchange(model, scheme, byzantine=px.adversary.workers((1,)))
    lost = []
    steps(model, torch.optim.SGD(model.parameters(), 0.1), 0, task["steps"], lambda: lost.append(exchange()["lost"]))
    return {"weights": weights(model), "lost": lost, "bytes": exchange.session.ledger.bytes_up}


def plain_ddp() -> dict[str, Any]:
    plain = build()
    steps(DistributedDataParallel(plain), torch.optim.SGD(plain.parameters(), 0.1), 0, task["steps"])
    return {"weights": weights(plain)}


def refused(scheme: str) -> str:
    try:
        px.ddp.register(DistributedDataParallel(build()), scheme)
    except ValueError as error:
        return str(error)
    return ""


result: dict[str, Any] = {"plain": plain_ddp(), "refused": {s: refused(s) for s in task["refused"]}}
result["hook"] = {s: through_hook(s) for s in task["both"]}
result["exchange"] = {s: through_exchange(s) for s in task["both"] + task["whole"]}
result["resumed"] = {s: through_hook(s, save_at=task["steps"] // 2) for s in task["both"]}
if rank == 0:
    (folder / "result.json").write_text(json.dumps(result))
dist.barrier()
dist.destroy_process_group()

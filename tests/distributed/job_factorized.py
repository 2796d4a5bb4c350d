"""A job: a loop of one's own that becomes low-rank halfway, through DDP's hook and through `exchange`."""

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
rank = dist.get_rank()


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    x = torch.randn(16, 40, generator=generator)
    return x, (x[:, :10] + x[:, 10:20]).argmax(dim=1)


def connected(model: nn.Module, scheme: str, hooked: bool) -> tuple[nn.Module, Any]:
    if not hooked:
        return model, px.exchange(model, scheme)
    wrapped = DistributedDataParallel(model)
    px.ddp.register(wrapped, scheme)
    return wrapped, None


def trained(scheme: str, hooked: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, gamma=0.9)
    called, exchange = connected(model, scheme, hooked)
    losses = []
    for step in range(60):
        if step == 20:
            low = px.factorize(model, 1 / 4)
            px.lowrank.transfer_optimizer(optimizer, model, low)
            model = low
            called, exchange = connected(model, scheme, hooked)
        x, y = batch(step)
        loss = nn.functional.cross_entropy(called(x), y)
        loss.backward()
        if exchange is not None:
            exchange()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(float(loss.detach()))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyone = [torch.empty_like(weights) for _ in range(2)]
    dist.all_gather(everyone, weights)
    equal = bool(torch.equal(*everyone))
    return {"equal": equal, "losses": losses, "parameters": len(weights), "lr": optimizer.param_groups[0]["lr"]}


found = {how: {s: trained(s, how == "hook") for s in task["schemes"]} for how in ("hook", "exchange")}
if rank == 0:
    (folder / "result.json").write_text(json.dumps(found))
dist.barrier()
dist.destroy_process_group()

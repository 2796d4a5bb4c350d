"""A job: four ranks train under DDP, the second lies; writes what the hook of each rank saw."""

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
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=100))
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3))
model = DistributedDataParallel(net, bucket_cap_mb=0.005)
accused: list[Any] = []
excluded: list[Any] = []
hook = px.ddp.register(
    model,
    "chain(reverse(c=1000), gather(dense()), trimmed_mean(f=1))",
    byzantine=px.adversary.workers((1,)),
    on_accused=lambda each: accused.append([each.round_index, each.worker, each.rule]),
    on_excluded=lambda each: excluded.append([each.round_index, each.worker, each.reason]),
    exclude_after=2,
)
optimizer = torch.optim.SGD(net.parameters(), 0.05)
for step in range(5):
    generator = torch.Generator().manual_seed(100 * step + rank)
    x, y = torch.randn(200, 30, generator=generator), torch.randint(3, (200,), generator=generator)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
seen = {"accused": accused, "excluded": excluded, "rounds": hook.ledger.rounds, "tested": dict(hook.ledger.tested)}
seen["weights"] = [float(p.detach().double().sum()) for p in net.parameters()]
every: list[Any] = [None] * ranks
dist.all_gather_object(every, seen)
if rank == 0:
    (folder / "result.json").write_text(json.dumps(every))
dist.barrier()
dist.destroy_process_group()

"""Several processes: gathers of payloads whose sizes stay, jump, shrink, vanish or pass the limit, and some fetched."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import phalanx as px
from phalanx.core.payload import BadPayload

LIMIT = 100_000
folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
world = px.ProcessGroupCollective(task.get("workers", 3))
trips, longest = 0, 0
plain = dist.all_gather


def counted(blocks, mine, **kwargs):
    global trips, longest
    trips, longest = trips + 1, max(longest, len(mine))
    return plain(blocks, mine, **kwargs)


dist.all_gather = counted
seen = []
asked = task.get("asked")  # by round, who is; everyone where there is none
for index, sizes in enumerate(task["sizes"]):

    def payload(worker: int, index: int = index, sizes: list[int] = sizes) -> dict[str, torch.Tensor] | None:
        if sizes[worker] < 0:
            return None
        return {"x": torch.arange(sizes[worker]).add(7 * worker + index).to(torch.uint8)}

    trips, longest = 0, 0
    chosen = asked[index] if asked else list(world.workers)
    held = [payload(w) for w in world.local_workers]
    arrived = world.fetch(held, chosen, LIMIT) if asked else world.gather(held, LIMIT)
    outcome = []
    for worker, got in zip(chosen, arrived, strict=True):
        sent = payload(worker)
        if isinstance(got, BadPayload):
            outcome.append(str(got))
        else:
            outcome.append("same" if sent is not None and got["x"].equal(sent["x"]) else "other")
    seen.append({"trips": trips, "longest": longest, "outcome": outcome})
every = world.all_gather_payloads({"seen": torch.frombuffer(bytearray(json.dumps(seen).encode()), dtype=torch.uint8)})
if dist.get_rank() == 0:
    ranks = [json.loads(bytes(part["seen"].tolist())) for part in every]
    (folder / "result.json").write_text(json.dumps(ranks))
dist.barrier()
dist.destroy_process_group()

"""A job: every scheme of task.json on the same rows; leaves results and exclusions in result.json."""

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import phalanx as px
from tests.distributed.faults import outcome

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
world = px.ProcessGroupCollective(task["workers"])
results = {scheme: outcome(scheme, world, task["byzantine"]) for scheme in task["schemes"]}
if dist.get_rank() == 0:
    (folder / "result.json").write_text(json.dumps(results))
dist.barrier()
dist.destroy_process_group()

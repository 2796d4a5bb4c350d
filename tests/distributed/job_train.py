"""A job: trains the runs of task.json, each in its own folder, and leaves their summaries in result.json."""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import phalanx as px
from phalanx.core.registry import import_extensions

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
import_extensions(task.get("imports", []))
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
summaries = {}
for label, expression in task["runs"].items():
    run = px.parse(expression)
    out = px.training.RunFolder(folder / label) if dist.get_rank() == 0 else None
    stop_at = task.get("stop_at", {}).get(label)

    def listener(line, stop_at=stop_at):
        if line["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        trainer = px.train(run, px.ProcessGroupCollective(run.workers), out, listener if out is not None else None)
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        summaries[label] = {**trainer.summary(), "weights": weights.tolist(), "metrics": out.metrics() if out else []}
    except px.Interrupted:
        summaries[label] = {"interrupted": stop_at}
if dist.get_rank() == 0:
    (folder / "result.json").write_text(json.dumps(summaries))
dist.barrier()
dist.destroy_process_group()

"""A job: trains the runs of task.json in processes that compute unlike, and leaves what they were told."""

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import phalanx as px
from phalanx.distributed.launcher import Launcher
from phalanx.distributed.server.membership import Timeouts
from phalanx.training.worker_loop import worker_loop
from tests.distributed.unlike import listen, noise

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
heard = listen()


def trained(label: str, world: px.Collective, writes: bool = True) -> dict[str, Any]:
    """What is logged, and the lines of the run, which may be stopped on the way."""
    heard.clear()
    lines: list[dict[str, Any]] = []
    stop_at = task.get("stop_at", {}).get(label)

    def listener(line: dict[str, Any]) -> None:
        lines.append(line)
        if line["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        summary = px.train(
            px.parse(task["runs"][label]),
            world,
            px.training.RunFolder(folder / label) if writes else None,
            listener if writes else None,
        ).summary()
    except px.Interrupted:
        summary = {"lost_rounds": None, "weights_sha256": None}
    told = {key: [line[key] for line in lines] for key in ("step", "undecided", "notice", "outvoted")}
    return {"log": list(heard), "sha": summary["weights_sha256"], "lost": summary["lost_rounds"], **told}


def exchanged(scheme: str, ranks: list[int], size: float, warmup: int = 0, normed: bool = False) -> dict[str, Any]:
    """The user's own loop, stopped and gone on with after the third step."""
    heard.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 3), nn.BatchNorm1d(3)) if normed else nn.Linear(20, 3)
    exchange = px.exchange(model, scheme, warmup=warmup)
    lines = []
    for step in range(6):
        if step == 3:
            before = len(heard)
            saved = exchange.state_dict()
            exchange = px.exchange(model, scheme, warmup=warmup)
            exchange.load_state_dict(saved)
        for unit, share in exchange.units:
            generator = torch.Generator().manual_seed(100 * step + unit)
            x, y = torch.randn(8, 20, generator=generator), torch.randint(3, (8,), generator=generator)
            (share * nn.functional.cross_entropy(model(x), y)).backward()
            for p in model.parameters():
                p.grad += noise(p.grad, tuple(ranks), size, step, unit)
            if "cyclic" in scheme:
                exchange.hold(unit)
        lines.append(exchange())
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
                p.grad = None
    told = {key: [line[key] for line in lines] for key in ("undecided", "notice", "lost", "bytes_up")}
    batches = [int(buffer) for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked")]
    return {"log": heard[:before], "later": heard[before:], "batches": batches, **told}


def group() -> dict[str, Any] | None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    results = {
        label: trained(label, px.ProcessGroupCollective(px.parse(run).workers), rank == 0)
        for label, run in task["runs"].items()
    }
    results |= {label: exchanged(**case) for label, case in task.get("exchanges", {}).items()}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, {label: result["log"] for label, result in results.items()})
    dist.barrier()
    dist.destroy_process_group()
    return {**results, "logs": every} if rank == 0 else None


def server() -> dict[str, Any] | None:
    jobs = Launcher(worker_loop)
    if jobs.rank:
        jobs.guard()
        return None
    results = {}
    for label, run in task["runs"].items():
        world = jobs.open(px.parse(run).workers, Timeouts(least_s=1.5))
        try:
            results[label] = trained(label, world)
        finally:
            world.close()
    jobs.end()
    return results


results = server() if task.get("server") else group()
if results is not None:
    (folder / "result.json").write_text(json.dumps(results))

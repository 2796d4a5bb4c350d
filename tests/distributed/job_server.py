"""A job: rank 0 serves every run of task.json, each in its own folder; leaves the summaries in result.json."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import phalanx as px
from phalanx.core.registry import import_extensions
from phalanx.distributed.launcher import Launcher
from phalanx.distributed.server.membership import Timeouts
from phalanx.training.worker_loop import worker_loop

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
import_extensions(task.get("imports", []))
jobs = Launcher(worker_loop, Path(task["keys"]) if "keys" in task else None)
if jobs.rank:
    jobs.guard()
else:
    summaries = {}
    for label, expression in task["runs"].items():
        run, out = px.parse(expression), px.training.RunFolder(folder / label)
        stop_at, kill_at = task.get("stop_at", {}).get(label), task.get("kill_at", {}).get(label)
        world = jobs.open(run.workers, Timeouts(**task.get("timeouts", {})))

        def listener(line, stop_at=stop_at, kill_at=kill_at, world=world):
            if line["step"] == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            if kill_at and line["step"] == kill_at[0]:
                (victim,) = [each["pid"] for each in world.processes if each["workers"] == [kill_at[1]]]
                os.kill(victim, signal.SIGKILL)
            if kill_at:
                time.sleep(0.1)

        try:
            trainer = px.train(run, world, out, listener)
            summaries[label] = {**trainer.summary(), "metrics": out.metrics()}
        except px.Interrupted:
            summaries[label] = {"interrupted": stop_at}
        finally:
            world.close()
    jobs.end()
    (folder / "result.json").write_text(json.dumps(summaries))

"""A job: rank 0 serves every run of task.json, each in its own folder; leaves the summaries in result.json."""

import json
import os
import signal
import sys
from pathlib import Path

import phalanx as px
from phalanx.distributed.launcher import Launcher
from phalanx.distributed.server.membership import Timeouts
from phalanx.training.worker_loop import worker_loop

folder = Path(sys.argv[1])
task = json.loads((folder / "task.json").read_text())
jobs = Launcher(worker_loop)
if jobs.rank:
    jobs.guard()
else:
    summaries = {}
    for label, expression in task["runs"].items():
        run, out = px.parse(expression), px.training.RunFolder(folder / label)
        stop_at = task.get("stop_at", {}).get(label)

        def listener(line, stop_at=stop_at):
            if line["step"] == stop_at:
                os.kill(os.getpid(), signal.SIGINT)

        world = jobs.open(run.workers, Timeouts(**task.get("timeouts", {})))
        try:
            trainer = px.train(run, world, out, listener)
            summaries[label] = {**trainer.summary(), "metrics": out.metrics()}
        except px.Interrupted:
            summaries[label] = {"interrupted": stop_at}
        finally:
            world.close()
    jobs.end()
    (folder / "result.json").write_text(json.dumps(summaries))

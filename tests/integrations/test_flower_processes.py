# SPDX-License-Identifier: Apache-2.0
"""Flower's own processes on this machine, and its simulation."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'phalanx-train[flower]'")

import phalanx as px
from phalanx.integrations.flower.local import Flower
from phalanx.training.model_state import fingerprint
from tests.distributed.launch import HERE, environment

pytestmark = [pytest.mark.processes, pytest.mark.timeout(1800)]

EXAMPLE = HERE.parents[1] / "examples" / "flower"
PROJECT = """
[project]
name = "bad-clients"
version = "0.1.0"
description = "some clients are faulty"
license = { text = "Apache-2.0" }

[tool.flwr.app]
publisher = "phalanx"

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"

[tool.flwr.app.config]
run = ""
folder = ""
"""
APP = """
from flwr.app import ArrayRecord
from phalanx.integrations.flower import Timeouts, client_app, server_app
from phalanx.integrations.flower.records import array, payload_of

# a node that dies is waited for as long as a process takes to start, several times; Flower's word comes after a minute
server = server_app(timeouts=Timeouts(join_s=400, first_s=400, least_s=15, factor=2.0))


def spoiled(message, context, call_next):
    reply = call_next(message, context)
    record, worker = reply.content["report"], context.node_config["partition-id"]
    payload = payload_of(record["packed"].data)
    if worker == 1:
        payload["values"] *= float("nan")
    if worker == 2:
        payload["values"] = payload["values"][1:]
    if worker == 3:
        reply.content["metrics"]["num-examples"] = 1e12
    reply.content["report"] = ArrayRecord({"packed": array(payload)})
    return reply


client = client_app(mods=[spoiled])
"""


def test_bad_clients_and_a_dead_node_are_named_and_the_run_ends(tmp_path):
    local = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), epochs=4, batch=20)
    run = px.Run(
        px.data.digits(),
        px.models.mlp((16,)),
        (px.federated.fedavg(local, 3),),
        workers=6,
        evaluate_every=1,
        checkpoint_every=1,
    )
    app, results = tmp_path / "app", tmp_path / "results"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "app.py").write_text(APP)
    with Flower(tmp_path, nodes=6, environment=environment()) as flower:
        run_id = flower.submit(app, run=repr(run), folder=str(results))
        until = time.monotonic() + 800
        while not (results / "checkpoint.safetensors").exists():
            assert time.monotonic() < until, flower.log("superlink")[-4000:]
            time.sleep(0.1)
        flower.kill(5)
        outcome = flower.wait(run_id, limit_s=800)
        processes = list(flower.processes.values())
    assert all(process.poll() is not None for process in processes)
    assert outcome.status == "finished:completed", outcome.log
    first, *later = px.training.RunFolder(results).metrics()
    words = {"1": "NaN", "2": "values is float32", "3": "a claimed weight of 1e+12"}
    for line in (first, *later):
        assert all(words[worker] in line["excluded"][worker] for worker in words)
    assert len(later) == 2 and "5" not in first["excluded"] and all("5" in line["excluded"] for line in later)
    # by our deadline, or by Flower's word where a round takes longer than a minute
    assert re.search("round 2: client 5 excluded: (no answer within|Flower's error 5|no node)", outcome.log)
    assert px.training.RunFolder(results).summary["accuracy"] > 0.7


def test_the_command_of_the_readme_ends_with_the_bits_of_the_simulation(tmp_path):
    (command,) = re.findall(
        r"^python (-m phalanx.integrations.flower.local .*--set .*)$", (EXAMPLE / "README.md").read_text(), re.M
    )
    command = command.replace("rounds=4", "rounds=2").replace("/tmp/flower-run", str(tmp_path / "results"))
    argv = [sys.executable, *shlex.split(command), "--set", "clients=2", "--limit", "900"]
    done = subprocess.run(
        argv, cwd=HERE.parents[1], env=environment(), text=True, capture_output=True, timeout=1000, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    simulated = px.train(_example().run({"method": "fedma", "rounds": 2, "clients": 2}))
    assert px.training.RunFolder(tmp_path / "results").summary["weights_sha256"] == fingerprint(simulated.model)
    assert "[ROUND 2/2]" in done.stdout and "finished:completed" in done.stdout


def _example():
    spec = importlib.util.spec_from_file_location("flower_example", EXAMPLE / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flowers_simulation_ends_with_the_bits_of_ours(tmp_path):
    run = px.Run(
        px.data.digits(),
        px.models.mlp((16,)),
        (
            px.federated.fedavg(
                px.federated.local_training(px.optim.sgd(0.1)), 2, codec=px.parse("error_feedback(top_k(0.1))")
            ),
        ),
        workers=4,
    )
    argv = [sys.executable, str(HERE / "job_flower.py"), repr(run), str(tmp_path)]
    surroundings = environment() | {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(argv, env=surroundings, text=True, capture_output=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    summary = json.loads(Path(tmp_path, "summary.json").read_text())
    assert summary["weights_sha256"] == fingerprint(px.train(run).model)

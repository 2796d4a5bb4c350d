# SPDX-License-Identifier: Apache-2.0
"""A server's job without torchrun: its guards may be killed, and everything ends with the server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phalanx.distributed.local_server_job import run_local_job
from phalanx.tools.cli.app import app

RUN = [sys.executable, "-m", "phalanx", "run", "quickstart", "--only", "median", "--server", "--processes", "4"]
RUN += ["--set", "workers=4", "--set", "byzantine=none()"]


def processes_of(parent: int) -> dict[int, int]:
    """Rank and process id of the processes of a job."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                words = dict(w.partition("=")[::2] for w in (folder / "environ").read_text().split("\0"))
                found[int(words["RANK"])] = int(folder.name)
        except (OSError, KeyError):
            continue
    return found


@pytest.mark.processes
def test_a_killed_guard_does_not_end_the_job(tmp_path):
    out = tmp_path / "run"
    slow = ["--set", "rounds=60", "--set", "faults=(delay(worker=0, seconds=0.1),)", "--out", str(out)]
    job = subprocess.Popen([*RUN, *slow], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 90
        while not list(out.glob("*/metrics.jsonl")) and job.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        ranks = processes_of(job.pid)
        assert sorted(ranks) == [0, 1, 2, 3, 4]
        os.kill(ranks[3], signal.SIGKILL)
        _, err = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode == 0 and "the guard of worker process 2 died (SIGKILL); it is started again" in err, err
    (metrics,) = out.glob("*/metrics.jsonl")
    rounds = [json.loads(line) for line in metrics.read_text().splitlines()]
    away = {r["step"] for r in rounds if "2" in r["excluded"]}
    assert len(rounds) == 60 and {w for r in rounds for w in r["excluded"]} <= {"2"} and away
    # it was back before the end, or the machine was too slow to start it again
    assert not any(r["lost"] for r in rounds)


@pytest.mark.processes
def test_everything_ends_with_the_server(tmp_path):
    endless = ["--set", "rounds=100000", "--out", str(tmp_path / "run")]
    job = subprocess.Popen([*RUN, *endless], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        until = time.monotonic() + 90
        while not list(tmp_path.glob("run/*/metrics.jsonl")) and job.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        ranks = processes_of(job.pid)
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
    finally:
        job.kill()
    assert job.returncode != 0 and "--server --processes 4" in err and "phalanx run --resume" in err, err
    assert ranks and not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--processes", "4"], "add --server"),
        (["--server", "--processes", "0"], "one worker process or more, got 0"),
        (["--server", "--processes", "2", "--keys", "folder"], "--keys are for several machines"),
    ],
)
def test_misuse_is_refused(monkeypatch, arguments, words):
    monkeypatch.setattr(sys, "argv", ["phalanx", "run", "quickstart", *arguments])
    result = CliRunner().invoke(app, ["run", "quickstart", *arguments])
    assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output


def test_not_under_torchrun_and_not_elsewhere(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="leave --processes or torchrun out"):
        run_local_job(["run", "quickstart", "--server"], 2)
    monkeypatch.delenv("RANK")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="runs on Linux, and this is darwin"):
        run_local_job(["run", "quickstart", "--server"], 2)

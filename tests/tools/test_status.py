# SPDX-License-Identifier: Apache-2.0
"""What a long run says, on the way and to another process."""

import io
import json
import threading
import time
from pathlib import Path

import pytest

import phalanx as px
from phalanx.core.heartbeat import Heartbeat
from phalanx.integrations.flower import local
from phalanx.tools.report import progress, tables
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import StudyFolder
from tests.tools.test_cli import phalanx, sentence

RUN = (
    "run(digits(), mlp(hidden=()), phases=(phase(gradient(batch=30), chain(gather(dense()), median()), sgd(lr=0.1), "
    "rounds=4),), workers=3, evaluate_every=2)"
)


def line(step: int, **excluded: str) -> dict:
    out = {worker.removeprefix("w"): reason for worker, reason in excluded.items()}
    return {"step": step, "bytes_up": 10, "loss": 0.5, "excluded": out, "accused": {}, "outvoted": []}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to stderr, which is no terminal."""
    out, made = io.StringIO(), tables.console

    def console(stderr: bool = False):
        shown = made(stderr)
        shown.file = out
        return shown

    monkeypatch.setattr(progress, "console", console)
    return out


def test_a_run_without_a_terminal_says_when_a_worker_is_out_and_back(printed: io.StringIO) -> None:
    with progress.Progress(1) as watcher:
        watcher.begin("run", px.parse(RUN))
        watcher.round("run", line(0))
        watcher.round("run", line(1, w0="the connection was lost"))
        watcher.round("run", line(2, w0="the connection was lost", w2="no answer within 2.0 s"))
        watcher.round("run", line(3, w2="no answer within 2.0 s"))
    assert printed.getvalue().splitlines() == [
        "[1/1] run begins",
        "round 1: worker 0: the connection was lost",
        "round 2: worker 2: no answer within 2.0 s",
        "round 3: worker 0 is back",
    ]


def test_a_worker_that_comes_and_goes_does_not_fill_the_log(printed: io.StringIO) -> None:
    with progress.Progress(1) as watcher:
        watcher.begin("run", px.parse(RUN))
        for step in range(300):
            watcher.round("run", line(step, **({"w1": "late"} if step % 2 else {})))
    said = printed.getvalue().splitlines()
    assert len(said) == 42 and said[-1].endswith("later changes are in metrics.jsonl only")


def test_a_silent_run_gives_signs_of_life(printed: io.StringIO) -> None:
    with progress.Progress(1, every_s=0.05) as watcher:
        watcher.begin("run", px.parse(RUN))
        watcher.round("run", line(1))
        until = time.monotonic() + 5
        while "round 2 of 4, loss 0.5000" not in printed.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert "run: round 2 of 4, loss 0.5000" in printed.getvalue()


def test_a_heartbeat_is_quiet_while_others_speak() -> None:
    said: list[str] = []
    with Heartbeat(said.append, lambda: "still there", every_s=0.5) as tell:
        for i in range(10):
            tell(str(i))
            time.sleep(0.01)
    assert said == [str(i) for i in range(10)]


def test_status_says_what_is_done_and_what_is_not(tmp_path: Path) -> None:
    config = tmp_path / "run.txt"
    config.write_text(RUN)
    study = build_study(str(config))
    folder = StudyFolder.create(study, tmp_path / "new")
    assert json.loads(phalanx("status", folder.path, "--json"))["jobs"][0]["state"] == "waiting"
    target = px.training.RunFolder(folder.run_path("run"))
    target.begin(repr(study.jobs["run"]))
    target.log({**line(1, w2="late"), "accuracy": 0.25})
    with folder.held():
        now = json.loads(phalanx("status", folder.path, "--json"))
        assert now["running"] and now["jobs"][0]["state"] == "running"
        assert (now["jobs"][0]["round"], now["jobs"][0]["accuracy"]) == (2, 0.25)
        text = phalanx("status", folder.path)
        assert "2 of 4" in text and "worker 2: late" in text and "is being run" in text
    assert json.loads(phalanx("status", folder.path, "--json"))["jobs"][0]["state"] == "stopped"
    target.finish({"accuracy": 0.25})
    assert json.loads(phalanx("status", folder.path, "--json"))["jobs"][0]["state"] == "done"
    assert "status needs the folder of a study" in sentence("status")
    assert "holds no study" in sentence("status", tmp_path)


def test_a_stopped_command_of_flower_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "flwr"
    program.write_text("#!/bin/sh\necho begun\nexec sleep 30\n")
    program.chmod(0o755)
    monkeypatch.setattr(local, "_program", lambda name: str(program))

    def stop(line: str) -> None:
        raise SystemExit(line)

    # other tests may have left some
    timers, began = {t for t in threading.enumerate() if isinstance(t, threading.Timer)}, time.monotonic()
    with pytest.raises(SystemExit, match="begun"):
        local.Flower(tmp_path, 1)._flwr("log", limit_s=60, tell=stop)
    assert time.monotonic() - began < 20
    # one that is cancelled ends in a moment
    for timer in {t for t in threading.enumerate() if isinstance(t, threading.Timer)} - timers:
        timer.join(timeout=10)
        assert not timer.is_alive()
    with pytest.raises(TimeoutError, match="did not end in time"):
        local.Flower(tmp_path, 1)._flwr("log", limit_s=0.2)

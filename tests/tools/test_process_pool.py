# SPDX-License-Identifier: Apache-2.0
"""Studies whose jobs a pool of processes runs."""

import json
import signal
import time
from pathlib import Path

import pytest

import phalanx as px
from phalanx.tools.runner.process_pool import ProcessPool, WorkerProcess, cores
from phalanx.tools.runner.request import build_study
from phalanx.tools.runner.study import Study, StudyFolder
from tests.tools.test_cli import TINY, phalanx, process, sentence, wait_for, weights

pytestmark = pytest.mark.processes
LABELS = ("mean", "krum", "median")
SETTINGS = ["rounds=60", "checkpoint_every=10", *TINY[1::2]]
ASKED = ("run", "quickstart", *(word for label in LABELS for word in ("--only", label)), "--set", "rounds=60")
LONG = (*ASKED, "--set", "checkpoint_every=10", *TINY)


def study(*labels: str) -> Study:
    return build_study("quickstart", None, SETTINGS, labels)


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """Weights of all runs, one after the other in one process."""
    return {label: px.train(run).summary()["weights_sha256"] for label, run in study(*LABELS).runs.items()}


class Killer:
    """A watcher that kills the process of a job as it begins, so many times, and writes down what it hears."""

    def __init__(self, workers: list[WorkerProcess], label: str, times: int) -> None:
        self.workers, self.label, self.times = workers, label, times
        self.began: list[str] = []
        self.ended: list[str] = []

    def begin(self, label, job) -> None:
        self.began.append(label)
        if label == self.label and self.times:
            [worker for worker in self.workers if worker.label == label][-1].process.kill()
            self.times -= 1

    def round(self, label, line) -> None:
        pass

    def progress(self, label, words) -> None:
        pass

    def end(self, label, summary) -> None:
        self.ended.append(label)


def conducted(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, times: int) -> Killer:
    """Two processes run LABELS; the one that runs krum is killed this many times."""
    workers: list[WorkerProcess] = []
    made = WorkerProcess.__init__
    monkeypatch.setattr(WorkerProcess, "__init__", lambda self, *given: (workers.append(self), made(self, *given))[1])
    killer = Killer(workers, "krum", times)
    with folder.held() as lock:
        ProcessPool(folder.study, folder, killer, 2, lock).map([])
    return killer


def test_a_killed_process_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: dict[str, str]
) -> None:
    folder = StudyFolder.create(study(*LABELS), tmp_path / "a study")
    killer = conducted(folder, monkeypatch, 1)
    assert sorted(killer.began) == sorted([*LABELS, "krum"]) and sorted(killer.ended) == sorted(LABELS)
    assert {r["label"]: r["weights_sha256"] for r in folder.results(folder.study)} == alone


def test_a_job_whose_process_dies_twice_is_named_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StudyFolder.create(study(*LABELS), tmp_path / "study")
    with pytest.raises(ValueError, match=r"krum \(killed by signal 9\) died 2 times"):
        conducted(folder, monkeypatch, 2)
    assert folder.finished(folder.study) == ["mean", "median"]


def test_more_jobs_at_a_time_end_in_the_same_weights(tmp_path: Path, alone: dict[str, str]) -> None:
    printed = json.loads(phalanx(*LONG, "--jobs", "2", "--out", tmp_path / "two", "--json"))
    assert [r["label"] for r in printed["results"]] == list(study(*LABELS).jobs)
    assert weights(tmp_path / "two") == alone
    # what has ended is kept
    before = (tmp_path / "two" / "krum" / "summary.json").stat().st_mtime_ns
    assert json.loads(phalanx("run", "--resume", tmp_path / "two", "--jobs", "2", "--json")) == printed
    assert (tmp_path / "two" / "krum" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_study_of_several_processes_ends_in_the_same_weights(
    how: signal.Signals, code: int, tmp_path: Path, alone: dict[str, str]
) -> None:
    folder = tmp_path / "study"
    running = process(*LONG, "--set", "evaluate_every=1", "--jobs", "2", "--out", folder)
    for label in ("mean", "krum"):
        wait_for(folder / label / "checkpoint.safetensors", running)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == code, err
    assert out == "" and "Traceback" not in err
    if how == signal.SIGTERM:
        assert f"jobs done; go on with\n  phalanx run --resume {folder} --jobs 2" in err
    # processes whose parent was killed let the folder go by themselves
    phalanx("run", "--resume", folder, "--jobs", "2")
    assert weights(folder) == alone


def test_a_folder_is_run_by_one_command_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phalanx.tools.runner.study.PATIENCE_S", 0.2)
    folder = StudyFolder.create(study("krum"), tmp_path / "study")
    with folder.held():
        said = sentence("run", "--resume", folder.path)
        assert "waiting for another process" in said and "is being run by another process" in said
    began = time.monotonic()
    with folder.held():
        assert time.monotonic() < began + 0.1


def test_an_error_of_one_job_stops_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # no network
    run = "run({}, mlp(), phases=(phase(gradient(), chain(gather(dense()), mean()), rounds=20000),))"
    jobs = {"first": px.parse(run.format("mnist()")), "second": px.parse(run.format("digits()"))}
    folder = StudyFolder.create(Study("run", None, (), jobs), tmp_path / "study")
    said = sentence("run", "--resume", folder.path, "--jobs", "2")
    assert "error: first: " in said and f"--resume {folder.path} --jobs 2" in said
    assert folder.finished(folder.study) == []


def test_jobs_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--jobs takes a number of processes >= 1, got 0" in sentence("run", "quickstart", "--jobs", "0")
    assert cores() >= 1
    monkeypatch.setenv("RANK", "0")
    assert "torchrun" in sentence("run", "quickstart", "--jobs", "2")

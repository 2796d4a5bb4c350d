# SPDX-License-Identifier: Apache-2.0
"""Commands with models and data of one's own, which a module registers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from phalanx.core import registry
from phalanx.core.trees import to_payload
from phalanx.distributed.job import Processes
from phalanx.distributed.server.messages import Kind, message
from phalanx.tools.cli.run import _resume_command
from phalanx.tools.runner.study import StudyFolder
from phalanx.training import worker_loop
from tests.distributed.launch import forked
from tests.tools.test_cli import phalanx, sentence

MODULE = '''
import torch
from torch import nn

from phalanx import method
from phalanx.data import Data, Dataset
from phalanx.models import Model


@method("OWN_data", "data")
class Stripes(Data):
    """Stripes that lie or stand."""

    amount: int = 200

    def read(self) -> Dataset:
        rng = torch.Generator().manual_seed(0)
        labels = torch.arange(self.amount) % 2
        lying = (torch.arange(8) // 2 % 2 * 200).repeat(8, 1).T
        images = torch.where(labels.view(-1, 1, 1) == 0, lying, lying.T)
        x = (images + torch.randint(56, images.shape, generator=rng)).to(torch.uint8).unsqueeze(1)
        half = self.amount // 2
        parts = (x[:half], labels[:half], x[half:], labels[half:])
        return Dataset("stripes", *parts, num_classes=2, mean=(0.5,), std=(0.4,))

    def location(self) -> str:
        return "made when it is read"


@method("OWN_net", "model")
class Net(Model):
    """A small network."""

    def build(self, shape, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, num_classes))
'''
RUN = (
    "run(data=OWN_data(), model=OWN_net(), phases=(phase(gradient(batch=20), chain(gather(dense()), median()), "
    "sgd(lr=0.1), rounds=6),), workers=4)"
)
FEDERATED = (
    "run(data=OWN_data(), model=OWN_net(), phases=(phase(local_training(sgd(lr=0.1), batch=20), "
    "chain(gather(dense()), mean()), sgd(lr=1.0), rounds=2),), workers=4)"
)


class Idle:
    """Stands in for a worker's runtime."""

    def load_memories(self, memories) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A folder with a module, which is the current one, and the prefix of the names that the module registers."""
    own = f"own_{abs(hash(request.node.name)) % 10**8}"
    (tmp_path / f"{own}_module.py").write_text(MODULE.replace("OWN", own))
    (tmp_path / "run.txt").write_text(RUN.replace("OWN", own))
    (tmp_path / "federated.txt").write_text(FEDERATED.replace("OWN", own))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_extensions", [])
    return tmp_path, own


def test_an_unknown_name_says_how_to_import_ones_own(place: tuple[Path, str]) -> None:
    assert "a name of your own needs its module, as in phalanx run --import MODULE" in sentence("run", "run.txt")


def test_an_import_that_fails_is_one_sentence(place: tuple[Path, str]) -> None:
    folder, own = place
    assert f"the module nowhere is neither in {folder} nor" in sentence("run", "run.txt", "--import", "nowhere")
    assert "without .py" in sentence("run", "run.txt", "--import", f"{own}_module.py")
    (folder / f"{own}_broken.py").write_text("x = 1\nx.y\n")
    error = sentence("run", "run.txt", "--import", f"{own}_broken")
    assert "cannot be imported (AttributeError" in error and f"{own}_broken.py, line 2)" in error


def test_show_reads_a_run_of_ones_own(place: tuple[Path, str]) -> None:
    _, own = place
    assert f"{own}_data(" in phalanx("show", "run.txt", "--import", f"{own}_module")


@pytest.mark.processes
def test_jobs_and_a_resumed_study_import_it(place: tuple[Path, str]) -> None:
    folder, own = place
    phalanx("run", "run.txt", "--import", f"{own}_module", "--jobs", "2", "--out", "new")
    assert json.loads((folder / "new/study.json").read_text())["imports"] == [f"{own}_module"]
    # as in a new process
    del sys.modules[f"{own}_module"]
    (folder / f"{own}_module.py").rename(folder / "gone.py")
    error = sentence("run", "--resume", "new")
    assert f"the module {own}_module is neither in" in error and "damaged" not in error


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_workers_of_a_server_import_it(place: tuple[Path, str]) -> None:
    folder, own = place
    (folder / "job.py").write_text("from phalanx.tools.cli.app import main\n\nmain()\n")
    argv = ("job.py", "run", "run.txt", "--server", "--import", f"{own}_module", "--out", "new")
    forked(3, "job_page.py", str(folder), *argv, folder=folder)
    assert json.loads((folder / "new/run/summary.json").read_text())["accuracy"] > 0.5


def test_a_server_tells_its_workers_which_modules(place: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, own = place
    setups = []
    monkeypatch.setattr(worker_loop, "WorkerRuntime", lambda run, workers: setups.append(run) or Idle())
    handler = worker_loop._MessageHandler((0,), None)  # type: ignore[arg-type]
    brief = {"run": RUN.replace("OWN", own), "modules": [f"{own}_module"], "memories": {}}
    handler.handle(message(Kind.SETUP, 0, to_payload(brief)))
    assert repr(setups[0].model) == f"{own}_net()" and registry.extensions() == [f"{own}_module"]


def test_a_red_team_attacks_ones_own_setting(place: tuple[Path, str]) -> None:
    folder, own = place
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.integers(0, 255, (6, 8, 8), dtype=np.uint8) for part in ("train", "test")}
    np.savez(folder / "edges.npz", x_train=images["x_train"], x_test=images["x_test"])
    edges = f"own_edges('{folder / 'edges.npz'}', target=1, label=0)"
    asked = ("federated.txt", "--edges", edges, "--only", "none: yours", "--rule", "yours")
    phalanx("redteam", *asked, "--import", f"{own}_module", "--jobs", "1", "--out", "new")
    assert list(folder.glob("new/*/summary.json"))


def test_the_resume_line_of_several_hosts_names_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"LOCAL_WORLD_SIZE": 4, "GROUP_WORLD_SIZE": 2, "MASTER_ADDR": "node7", "MASTER_PORT": 29511}
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    line = _resume_command(Processes(0, 8), 1, StudyFolder("runs/a study"))
    assert line == (
        "torchrun --nnodes 2 --node-rank K --master-addr node7 --master-port 29511 --nproc-per-node 4 -m phalanx run "
        "--resume 'runs/a study'\n  on every host, with K from 0 to 1; host 0 has the folder"
    )
    monkeypatch.delenv("GROUP_WORLD_SIZE")
    line = _resume_command(Processes(0, 4), 1, StudyFolder("runs/a"))
    assert line == "torchrun --nproc-per-node 4 -m phalanx run --resume runs/a"

"""Images that are read from files: two gloo processes cut, mirror and learn as the simulation does."""

import pytest

import phalanx as px
from phalanx.data.dataset import _load
from tests.data.test_images import fill, run_of
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes


def test_same_weights_as_the_simulation(tmp_path, monkeypatch):
    monkeypatch.setenv("PHALANX_DATA", str(tmp_path))
    fill(tmp_path / "photos")
    run = run_of(px.models.cnn(channels=(4, 8)))
    there = run_job(2, "job_train.py", {"runs": {"files": repr(run)}}, tmp_path)["files"]
    here = px.train(run).summary()
    _load.cache_clear()
    assert there["processes"] == 2 and there["weights_sha256"] == here["weights_sha256"]

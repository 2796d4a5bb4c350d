# SPDX-License-Identifier: Apache-2.0
"""Surgeries over gloo processes: every rank ends alike, with the bits of the simulation, also after a resume."""

import pytest

import phalanx as px
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

RUN = (
    "run(digits(), cnn(channels=(6, 8)), phases=(phase(gradient(batch=40), {scheme}, {optimizer}, rounds=10, "
    "surgery={surgery}), phase(gradient(batch=40), {scheme}, {optimizer}, rounds=2)), workers=4, "
    "checkpoint_every=4, evaluate_every=1)"
)
SCHEME = "chain(momentum(0.5), gather(dense()), median())"
SURGERIES = {
    "lottery": "lottery(every=4, rate=0.5, rewind=1)",
    "early bird": "early_bird(ratio=0.4, every=2, window=2, distance=0.5)",
    "pufferfish": "pufferfish(warmup=0.5, ratio=0.5)",
}
RUNS = {
    label: RUN.format(scheme=SCHEME, optimizer="sgd(lr=0.05, momentum=0.9)", surgery=text)
    for label, text in SURGERIES.items()
}


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory):
    return run_job(2, "job_train.py", {"runs": RUNS}, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("label", RUNS)
def test_same_weights_as_the_simulation(over_gloo, label):
    here, there = px.train(px.parse(RUNS[label])).summary(), over_gloo[label]
    assert here["weights_sha256"] == there["weights_sha256"]
    assert here["parameters"] == there["parameters"] < there["metrics"][0]["parameters"]
    # rank 1 has the network of rank 0, or the median of all rows would have failed or differed
    assert there["processes"] == 2 and any("operated" in line for line in there["metrics"])


def test_resume_in_another_number_of_processes(over_gloo, tmp_path):
    stops = {"lottery": 5, "early bird": 6, "pufferfish": 4}
    stopped = run_job(3, "job_train.py", {"runs": RUNS, "stop_at": stops}, tmp_path)
    assert {label: stopped[label] for label in RUNS} == {label: {"interrupted": at} for label, at in stops.items()}
    for label, text in RUNS.items():
        again = px.train(px.parse(text), folder=px.training.RunFolder(tmp_path / label))
        assert again.summary()["weights_sha256"] == over_gloo[label]["weights_sha256"], label

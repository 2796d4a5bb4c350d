# SPDX-License-Identifier: Apache-2.0
"""Clients with data of their own over gloo processes and with a server: the bits are those of the simulation."""

import pytest
from torch.nn import functional as F

import phalanx as px
from tests.data import own_sets as own
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

TASK = px.training.task(
    F.mse_loss,
    metrics=(
        px.training.metric("error", None, higher_is_better=False),
        px.training.metric("loaded", None, higher_is_better=False),
    ),
    evaluate=own.count_loaded,
)


def run(**fields):
    local = px.federated.local_training(px.optim.sgd(0.1), batch=4)
    return px.Run(
        px.data.client_datasets(own.noisy_clinic),
        px.models.custom(own.linear),
        (px.federated.fedavg(local, rounds=3, rule=px.aggregators.median()),),
        workers=4,
        partition=px.data.by_client(),
        task=TASK,
        evaluate_every=2,
        seed=5,
        **fields,
    )


RUNS = {
    "plain": run(),
    "stops": run(stopping=px.training.early_stopping(patience=1, least=1000.0)),
    "crash": run(faults=(px.parse("crash(worker=3, at=1)"),)),
}


@pytest.fixture(scope="module")
def simulated():
    return px.train(RUNS["plain"]).summary()


def same(found, simulated, loaded):
    assert found["weights_sha256"] == simulated["weights_sha256"]
    for client, numbers in simulated["client_metrics"].items():
        other = found["client_metrics"][client]
        assert (other["error"], other["examples"]) == (numbers["error"], numbers["examples"])
        assert other["loaded"] == loaded
    assert found["score"]["value"] == simulated["score"]["value"]


def ends_with_its_best_model(found):
    """The first test, after two rounds, is the best one, and the second, after the third round, ends the run."""
    expected = px.train(RUNS["stops"]).summary()
    assert (found["rounds"], found["best"]["rounds"], found["best"]["tests_since"]) == (3, 2, 1)
    assert found["weights_sha256"] == expected["weights_sha256"] != ""
    assert found["score"]["value"] == expected["score"]["value"] == found["best"]["value"]


def test_processes_load_and_evaluate_their_own_clients(simulated, tmp_path):
    texts = {label: repr(RUNS[label]) for label in ("plain", "stops")}
    found = run_job(2, "job_train.py", {"runs": texts, "imports": ["tests.data.own_sets"]}, tmp_path)
    same(found["plain"], simulated, loaded=2)
    ends_with_its_best_model(found["stops"])


def test_a_server_has_no_data_and_asks_the_clients(simulated, tmp_path):
    texts = {label: repr(run) for label, run in RUNS.items()}
    timeouts = {"least_s": 10.0, "factor": 5.0}
    task = {"runs": texts, "imports": ["tests.data.own_sets"], "timeouts": timeouts}
    found = run_job(5, "job_server.py", task, tmp_path)
    same(found["plain"], simulated, loaded=1)
    ends_with_its_best_model(found["stops"])
    crashed = [line for line in found["crash"]["metrics"] if "score" in line][-1]
    assert sorted(crashed["client_metrics"]) == ["0", "1", "2"]
    assert crashed["clients_left_out"] == {"3": "no answer in time"}

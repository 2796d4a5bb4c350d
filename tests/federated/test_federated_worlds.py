# SPDX-License-Identifier: Apache-2.0
"""Federated runs over gloo processes and with a server end with the weights of the simulation."""

import pytest

import phalanx as px
from tests.distributed.launch import run_job

pytestmark = pytest.mark.processes

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=40)
OWN = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=40, own=True)


def run(phase, **options):
    return px.Run(
        px.data.digits(),
        px.models.mlp((16,)),
        (phase,),
        workers=6,
        partition=px.data.dirichlet(1.0),
        checkpoint_every=2,
        seed=3,
        **options,
    )


RUNS = {
    "fedavg of some": run(px.federated.fedavg(LOCAL, 4, clients=3)),
    "fedprox": run(px.federated.fedprox(OWN, 3)),
    "diloco, compressed": run(
        px.federated.diloco(5, 4, inner=px.optim.adamw(0.003), codec=px.parse("error_feedback(sign(scaled=True))"))
    ),
    "diloco, robust": run(px.federated.diloco(5, 4, inner=px.optim.adamw(0.003), rule=px.aggregators.median())),
    "pfnm": run(px.federated.pfnm(OWN)),
    "fedma": run(px.federated.fedma(OWN, layers=2, passes=2)),
    "fedma of some": run(px.federated.fedma(OWN, layers=2, passes=2, clients=4)),
    "fedma with a crash": run(px.federated.fedma(OWN, layers=2, passes=2), faults=(px.parse("crash(worker=5, at=1)"),)),
}


@pytest.fixture(scope="module")
def over_gloo(tmp_path_factory):
    texts = {label: repr(run) for label, run in RUNS.items() if not run.faults}
    return run_job(3, "job_train.py", {"runs": texts}, tmp_path_factory.mktemp("gloo"))


@pytest.fixture(scope="module")
def simulated():
    return {label: px.train(run) for label, run in RUNS.items()}


@pytest.mark.parametrize("label", [label for label, run in RUNS.items() if not run.faults])
def test_same_weights_as_the_simulation(over_gloo, simulated, label):
    summary = simulated[label].summary()
    assert over_gloo[label]["weights_sha256"] == summary["weights_sha256"]
    assert over_gloo[label]["bytes_up"] == summary["bytes_up"]
    assert over_gloo[label]["bytes_down"] == summary["bytes_down"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    texts = {label: repr(run) for label, run in RUNS.items()}
    task = {"runs": texts, "timeouts": {"least_s": 10.0, "factor": 5.0}}
    return run_job(7, "job_server.py", task, tmp_path_factory.mktemp("server"))


@pytest.mark.parametrize("label", RUNS)
def test_a_server_ends_with_the_bits_of_the_simulation(served, simulated, label):
    assert served[label]["weights_sha256"] == simulated[label].summary()["weights_sha256"]


def test_a_client_that_dies_within_a_pass_is_named_and_the_pass_goes_on(served):
    lines = served["fedma with a crash"]["metrics"]
    assert "5" in lines[1]["excluded"] and lines[2]["excluded"].keys() <= {"5"}
    assert lines[3]["clients"] == [0, 1, 2, 3, 4]

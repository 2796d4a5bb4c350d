# SPDX-License-Identifier: Apache-2.0
"""Runs on Flower's strategy, ClientApp and records, without its processes."""

import json
import math

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install phalanx-train[flower]")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import phalanx as px
from phalanx.flower import Patience, client_app, server_app, strategy
from phalanx.flower.client import STATE
from phalanx.summary import fingerprint
from tests.worlds.flower_grid import LocalGrid
from tests.worlds.test_federated import LOCAL, OWN, RUNS, run

SHORT = Patience(join_s=0.2, first_s=0.5, least_s=0.2, factor=2.0)
AFTER = Patience(join_s=60.0, first_s=60.0, least_s=30.0, factor=10.0)


def conducted(run, grid=None, patience=AFTER, spoils=None, **options):
    grid = grid or LocalGrid(client_app(run), run.workers, spoils)
    return strategy(run, patience=patience, poll_s=0.01, **options).start(grid)


SAME = {label: run for label, run in RUNS.items() if not run.faults} | {
    "fedavg, bf16": run(px.fedavg(LOCAL, 3, codec=px.parse("half(precision='bf16')"))),
    "fedavg, error feedback": run(px.fedavg(LOCAL, 4, codec=px.parse("error_feedback(top_k(0.1))"))),
    "local momentum": run(
        px.phase(LOCAL, px.parse("chain(momentum(0.5), gather(qsgd(bits=4)), mean())"), px.sgd(1.0), 3)
    ),
    "fedavg, then fedma": px.run(
        px.digits(), px.mlp((16,)), (px.fedavg(LOCAL, 2), px.fedma(OWN, layers=2, passes=2)), workers=4, seed=5
    ),
}


@pytest.mark.parametrize("label", SAME)
def test_same_bits_as_the_simulation(label):
    simulated = px.train(SAME[label]).summary()
    outcome = conducted(SAME[label])
    for key in ("weights_sha256", "bytes_up", "bytes_down", "accuracy", "local_epochs"):
        assert outcome.summary[key] == simulated[key]
    assert not any(line["excluded"] for line in outcome.rounds)

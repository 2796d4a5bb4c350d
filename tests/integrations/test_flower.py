# SPDX-License-Identifier: Apache-2.0
"""Runs on Flower's strategy, ClientApp and records, without its processes."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'phalanx-train[flower]'")

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

import phalanx as px
from phalanx.integrations.flower import client_app, server_app, strategy
from phalanx.integrations.flower.client import STATE, _runtimes
from phalanx.training.model_state import fingerprint
from tests.federated.test_federated import Normed
from tests.federated.test_federated_worlds import LOCAL, OWN, RUNS, run
from tests.integrations.flower_grid import AFTER, LocalGrid, conducted

SAME = {label: run for label, run in RUNS.items() if not run.faults} | {
    "fedavg, bf16": run(px.federated.fedavg(LOCAL, 3, codec=px.parse("half(precision='bf16')"))),
    "fedavg, error feedback": run(px.federated.fedavg(LOCAL, 4, codec=px.parse("error_feedback(top_k(0.1))"))),
    "local momentum": run(
        px.Phase(LOCAL, px.parse("chain(momentum(0.5), gather(qsgd(bits=4)), mean())"), px.optim.sgd(1.0), 3)
    ),
    "fedavg, then fedma": px.Run(
        px.data.digits(),
        px.models.mlp((16,)),
        (px.federated.fedavg(LOCAL, 2), px.federated.fedma(OWN, layers=2, passes=2)),
        workers=4,
        seed=5,
    ),
}


@pytest.mark.parametrize("label", SAME)
def test_same_bits_as_the_simulation(label):
    simulated = px.train(SAME[label]).summary()
    outcome = conducted(SAME[label])
    for key in ("weights_sha256", "bytes_up", "bytes_down", "accuracy", "local_epochs"):
        assert outcome.summary[key] == simulated[key]
    assert not any(line["excluded"] for line in outcome.rounds)


@pytest.mark.parametrize(
    "label", ["fedma of some", "fedavg, error feedback", "diloco, compressed", "fedavg, then fedma"]
)
def test_nothing_but_the_state_need_last_from_message_to_message(label):
    def forgets(reply):
        _runtimes.clear()
        return reply

    outcome = conducted(SAME[label], spoils=dict.fromkeys(range(6), forgets))
    assert outcome.summary["weights_sha256"] == fingerprint(px.train(SAME[label]).model)


def test_integer_buffers_keep_their_dtype():
    normed = replace(run(px.federated.fedavg(LOCAL, 2)), model=Normed())
    outcome = conducted(normed)
    state = outcome.arrays.to_torch_state_dict()
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    assert state["norm.num_batches_tracked"].shape == ()
    assert outcome.summary["weights_sha256"] == px.train(normed).summary()["weights_sha256"]


PLAIN = run(px.federated.fedavg(LOCAL, 3))

STATEFUL = {
    "fedavg": run(px.federated.fedavg(LOCAL, 4)),
    "diloco": run(px.federated.diloco(3, 4, inner=px.optim.adamw(0.003), clients=4)),
    "fedma": run(px.federated.fedma(OWN, layers=2, passes=2)),
    "codec": run(px.federated.fedavg(LOCAL, 4, codec=px.parse("error_feedback(top_k(0.1))"))),
    "two phases": replace(
        run(px.federated.fedavg(LOCAL, 2)),
        phases=(px.federated.fedavg(LOCAL, 2, codec=px.parse("error_feedback(top_k(0.1))")),) * 2,
    ),
}


@pytest.mark.parametrize("label", STATEFUL)
@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_run_goes_on_from_its_folder_to_the_same_bits(tmp_path, label, stop_at):
    every = replace(STATEFUL[label], checkpoint_every=1)
    whole = conducted(every)
    grid = Dies(client_app(every), every.workers, stop_at)
    with pytest.raises(ConnectionError):
        conducted(every, grid, folder=tmp_path)
    # the nodes of another run of Flower know nothing of this one
    again = conducted(every, folder=tmp_path)
    assert [line["step"] for line in again.rounds] == list(range(stop_at + 1, 4))
    assert again.summary["weights_sha256"] == whole.summary["weights_sha256"]
    folder = px.training.RunFolder(tmp_path)
    assert [line["step"] for line in folder.metrics()] == [0, 1, 2, 3]
    assert folder.summary["weights_sha256"] == whole.summary["weights_sha256"]
    assert json.loads((tmp_path / "processes.json").read_text())[2]["workers"] == [2]


class Dies(LocalGrid):
    """A grid whose SuperLink is gone when the round after `last` begins."""

    def __init__(self, app, workers, last):
        super().__init__(app, workers)
        self.last = last

    def push_messages(self, messages):
        messages = list(messages)
        if any(m.metadata.group_id == str(self.last + 2) for m in messages):
            raise ConnectionError
        return super().push_messages(messages)


def test_another_run_at_a_client_is_told_and_named():
    other = run(px.federated.fedavg(LOCAL, 3, clients=5))
    outcome = conducted(PLAIN, LocalGrid(client_app(other), 6))
    assert all("the server's run differs from this client's" in line["excluded"]["0"] for line in outcome.rounds)
    assert outcome.summary["lost_rounds"] == 3


def test_the_state_of_a_client_does_not_grow():
    sizes = []
    fedma = run(px.federated.fedma(OWN, layers=2, passes=3))
    grid = LocalGrid(client_app(fedma), 6, {1: lambda r: sizes.append(_state(grid.nodes[grid.node(1)])) or r})
    conducted(fedma, grid)
    assert len(sizes) == 6 and sizes[4] <= 1.5 * sizes[2] and sizes[5] <= 1.5 * sizes[3]
    plain = LocalGrid(client_app(PLAIN), 6)
    conducted(PLAIN, plain)
    assert all(list(c.state) == [STATE] and _state(c) < 1000 for c in plain.nodes.values())


def _state(context):
    return len(context.state[STATE]["packed"].data)


def test_a_state_of_another_run_of_a_series_is_not_used():
    codec = STATEFUL["codec"]
    grid = LocalGrid(client_app(codec), 6)
    first = conducted(codec, grid)
    for context in grid.nodes.values():
        context.run_id = 8
    assert conducted(codec, grid).summary["weights_sha256"] == first.summary["weights_sha256"]


def test_equal_parts_of_orders_are_one_array_and_memories_stay_at_home():
    fedma = run(px.federated.fedma(OWN, layers=2, passes=2))
    grid = LocalGrid(client_app(fedma), 6)
    conducted(fedma, grid)
    for number in range(1, 5):
        orders = [m.content["order"] for m in grid.sent if m.metadata.group_id == str(number)]
        assert len({order["shared"].object_id for order in orders}) == 1
    assert all("memory" not in m.content for m in grid.sent)
    assert not any(m.metadata.message_type == "query.memory" for m in grid.sent)


def test_apps_read_the_run_from_the_run_config(tmp_path):
    config = {"run": repr(PLAIN), "folder": str(tmp_path)}
    grid = LocalGrid(client_app(), 6, config=config)
    context = next(iter(grid.nodes.values()))
    server_app(timeouts=AFTER, poll_s=0.01)(grid, context)
    assert px.training.RunFolder(tmp_path).summary["weights_sha256"] == fingerprint(px.train(PLAIN).model)
    chosen = server_app(lambda config: PLAIN if config["method"] == "plain" else None, timeouts=AFTER)
    context.run_config = {"method": "other"}
    with pytest.raises(ValueError, match="an app needs a run"):
        chosen(grid, context)
    with pytest.raises(ValueError, match=r'the expression under "run" of \[tool.flwr.app.config\]'):
        server_app()(grid, context)


def test_a_server_without_data_does_not_test():
    outcome = conducted(PLAIN, evaluate=False)
    assert outcome.summary["accuracy"] is None and outcome.summary["macs"] > 0
    assert outcome.summary["weights_sha256"] == fingerprint(px.train(PLAIN).model)
    assert not outcome.evaluate_metrics_serverapp


def test_starts_from_given_arrays_and_calls_the_callers_test():
    model = px.train(PLAIN).model
    seen = []
    grid = LocalGrid(client_app(PLAIN), 6)
    outcome = strategy(PLAIN, timeouts=AFTER, poll_s=0.01).start(
        grid,
        ArrayRecord(model.state_dict()),
        num_rounds=3,
        timeout=30,
        evaluate_fn=lambda number, arrays: seen.append((number, len(arrays))) or MetricRecord({"mine": 1.0}),
    )
    assert seen == [(number, len(model.state_dict())) for number in (1, 2, 3)]
    assert dict(outcome.evaluate_metrics_serverapp[3]) == {"mine": 1.0}
    assert outcome.rounds[0]["loss"] < conducted(PLAIN).rounds[0]["loss"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the run has 3 rounds, got num_rounds=7"):
        strategy(PLAIN).start(LocalGrid(client_app(PLAIN), 6), num_rounds=7)
    with pytest.raises(ValueError, match="leave the configs out"):
        strategy(PLAIN).start(LocalGrid(client_app(PLAIN), 6), train_config=ConfigRecord({"lr": 0.1}))
    with pytest.raises(ValueError, match="an absolute path, got here"):
        strategy(PLAIN, folder="here")
    with pytest.raises(ValueError, match="min_clients lies between 1 and the run's 6 workers, got 7"):
        strategy(PLAIN, min_clients=7)
    with pytest.raises(ValueError, match=r"has no gather\(...\)"):
        strategy(run(px.Phase(px.training.gradient(), px.parse("reduce(dense())"))))
    with pytest.raises(ValueError, match=r"Flower carries gather\(...\) only"):
        strategy(run(px.Phase(px.training.gradient(), px.parse("chain(vote(dense(), r=3), mean())"))))
    with pytest.raises(ValueError, match="not by a strategy around it"):
        strategy(PLAIN).configure_train(1, ArrayRecord(), ConfigRecord(), LocalGrid(client_app(PLAIN), 0))


def test_without_flower_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.delitem(sys.modules, "phalanx.integrations.flower")
    with pytest.raises(
        ImportError, match=r"^phalanx.integrations.flower needs Flower; pip install 'phalanx-train\[flower\]'$"
    ):
        importlib.import_module("phalanx.integrations.flower")
    script = "import phalanx, sys; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_mods_stand_around_the_training():
    calls = []

    def mod(message, context, call_next):
        calls.append(message.metadata.message_type)
        return call_next(message, context)

    conducted(PLAIN, LocalGrid(client_app(PLAIN, mods=[mod]), 6))
    assert calls == ["train"] * 18

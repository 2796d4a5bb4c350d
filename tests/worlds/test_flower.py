# SPDX-License-Identifier: Apache-2.0
"""Runs on Flower's strategy, ClientApp and records, without its processes."""

import importlib
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install phalanx-train[flower]")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

import phalanx as px
from phalanx.flower import Patience, client_app, server_app, strategy
from phalanx.flower.client import STATE, _desks
from phalanx.flower.records import array, payload_of
from phalanx.summary import fingerprint
from tests.test_federated import Normed
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


@pytest.mark.parametrize(
    "label", ["fedma of some", "fedavg, error feedback", "diloco, compressed", "fedavg, then fedma"]
)
def test_nothing_but_the_state_need_last_from_message_to_message(label):
    def forgets(reply):
        _desks.clear()
        return reply

    outcome = conducted(SAME[label], spoils=dict.fromkeys(range(6), forgets))
    assert outcome.summary["weights_sha256"] == fingerprint(px.train(SAME[label]).model)


def test_integer_buffers_keep_their_dtype():
    normed = replace(run(px.fedavg(LOCAL, 2)), model=Normed())
    outcome = conducted(normed)
    state = outcome.arrays.to_torch_state_dict()
    assert state["norm.num_batches_tracked"].dtype == torch.int64
    assert state["norm.num_batches_tracked"].shape == ()
    assert outcome.summary["weights_sha256"] == px.train(normed).summary()["weights_sha256"]


PLAIN = run(px.fedavg(LOCAL, 3))


def with_report(reply, record):
    return Message(RecordDict({"report": record, "metrics": reply.content["metrics"]}), reply_to=_order(reply))


def _order(reply):
    """A message to which another reply may be given."""
    about = reply.metadata
    order = Message(RecordDict(), about.src_node_id, "train")
    order.metadata.__dict__["_message_id"] = about.reply_to_message_id
    return order


def payload(change):
    """A spoil that changes the tensors of a reply."""

    def spoil(reply):
        tensors = payload_of(reply.content["report"]["packed"].data)
        return with_report(reply, ArrayRecord({"packed": array(change(tensors))}))

    return spoil


def metric(**values):
    def spoil(reply):
        metrics = {**dict(reply.content["metrics"]), **{k.replace("_", "-"): v for k, v in values.items()}}
        metrics = MetricRecord({k: v for k, v in metrics.items() if v is not None})
        content = RecordDict({"report": reply.content["report"], "metrics": metrics})
        return Message(content, reply_to=_order(reply))

    return spoil


def only(record):
    return lambda reply: Message(record, reply_to=_order(reply))


def bytes_of(data):
    return lambda reply: with_report(reply, ArrayRecord({"packed": Array("float32", (2, 3), "numpy.ndarray", data)}))


BAD = {
    "NaN": (payload(lambda p: {**p, "values": p["values"] * math.nan}), "NaN"),
    "Inf": (payload(lambda p: {**p, "values": p["values"] + math.inf}), "Inf"),
    "shape": (payload(lambda p: {**p, "values": p["values"][1:]}), "values is float32"),
    "dtype": (payload(lambda p: {**p, "values": p["values"].double()}), "values is float64"),
    "an extra key": (payload(lambda p: {**p, "extra": p["values"]}), "keys"),
    "a missing key": (payload(lambda p: {"weight": p["weight"]}), "keys"),
    "no weight": (payload(lambda p: {"values": p["values"]}), "weight is missing"),
    "too long": (payload(lambda p: {**p, "values": torch.zeros(10**6)}), "bytes, at most"),
    "1e12 examples": (metric(num_examples=1e12), "a claimed weight of 1e+12"),
    "negative examples": (metric(num_examples=-5), "a claimed weight of -5"),
    "no examples": (metric(num_examples=0), "a claimed weight of 0"),
    "NaN examples": (metric(num_examples=math.nan), "a claimed weight of nan"),
    "a list of examples": (metric(num_examples=[5, 5]), "a claimed weight of nan"),
    "unknown examples": (metric(num_examples=None), "the metric 'num-examples' is missing"),
    "no record": (only(RecordDict()), "where an array 'packed' in a record 'report' belongs"),
    "another record": (only(RecordDict({"report": ConfigRecord({"packed": "x"})})), "where an array 'packed'"),
    "stock arrays": (only(RecordDict({"arrays": ArrayRecord({"w": Array(torch.ones(2).numpy())})})), "['arrays']"),
    "no bytes": (bytes_of(b""), "no bytes at all"),
    "foreign bytes": (bytes_of(b"\x93NUMPY" * 9), "not a phalanx message"),
    "half a message": (bytes_of(b"PHX1\x02\x00"), "truncated"),
    "an exception": (lambda reply: Message(Error(2, "boom\n" * 1000), reply_to=_order(reply)), "error 2: boom boom"),
    "unreadable": (lambda reply: json.JSONDecodeError("Expecting value", "x", 0), "cannot read: JSONDecodeError"),
}


@pytest.mark.parametrize("label", BAD)
def test_a_bad_client_is_named_and_the_others_go_on(label):
    spoil, reason = BAD[label]
    outcome = conducted(PLAIN, spoils={4: spoil})
    for line in outcome.rounds:
        assert list(line["excluded"]) == ["4"] and reason in line["excluded"]["4"] and not line["lost"]
        assert len(line["excluded"]["4"]) < 400
    assert [dict(m)["excluded"] for m in outcome.train_metrics_clientapp.values()] == [[4]] * 3
    assert outcome.summary["accuracy"] > 0.5 and outcome.summary["accused"][0]["worker"] == 4


def test_a_client_that_never_answers_is_waited_for_ever_more_rarely(monkeypatch):
    outcome = conducted(run(px.fedavg(LOCAL, 5)), patience=SHORT, spoils={2: lambda reply: None})
    assert all("no answer within" in line["excluded"]["2"] for line in outcome.rounds)
    assert all(set(line["excluded"]) == {"2"} for line in outcome.rounds)
    waited = [line["work_s"] for line in outcome.rounds]
    # late in rounds 0, 2 and 5; not waited for in 1, 3 and 4
    assert waited[0] >= 0.5 and waited[2] >= 0.2


def test_a_client_out_of_a_pass_is_back_in_the_next():
    lost = iter([0, 0, 1])

    def once(reply):
        return None if next(lost, 0) else reply

    outcome = conducted(run(px.fedma(OWN, layers=2, passes=3)), patience=SHORT, spoils={5: once})
    assert [line.get("clients") for line in outcome.rounds] == [None, None, None, [0, 1, 2, 3, 4], None, None]
    assert "5" in outcome.rounds[2]["excluded"] and outcome.summary["accuracy"] > 0.3


STATEFUL = {
    "fedavg": run(px.fedavg(LOCAL, 4)),
    "diloco": run(px.diloco(3, 4, inner=px.adamw(0.003), clients=4)),
    "fedma": run(px.fedma(OWN, layers=2, passes=2)),
    "codec": run(px.fedavg(LOCAL, 4, codec=px.parse("error_feedback(top_k(0.1))"))),
    "two phases": replace(
        run(px.fedavg(LOCAL, 2)), phases=(px.fedavg(LOCAL, 2, codec=px.parse("error_feedback(top_k(0.1))")),) * 2
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
    folder = px.RunFolder(tmp_path)
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


class Restarts(LocalGrid):
    """A grid in which a node is replaced by a new one before a round."""

    def __init__(self, app, workers, before, partition):
        super().__init__(app, workers)
        self.before, self.partition, self.new = before, partition, None

    def get_node_ids(self):
        orders = [m for m in self.sent if m.metadata.message_type == "train"]
        if self.new is None and any(m.metadata.group_id == str(self.before) for m in orders):
            del self.nodes[self.node(self.partition)]
            self.new = self.add(self.partition)
        return super().get_node_ids()


def test_a_node_that_restarts_under_a_new_id_goes_on_as_the_same_worker():
    runs = run(px.fedavg(LOCAL, 3))
    grid = Restarts(client_app(runs), 6, 1, 3)
    outcome = conducted(runs, grid)
    assert grid.new is not None and not any(line["excluded"] for line in outcome.rounds[:1])
    assert not outcome.rounds[2]["excluded"]
    assert grid.new in {m.metadata.dst_node_id for m in grid.sent if m.metadata.group_id == "3"}
    queries = [m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "query"]
    assert sorted(queries) == sorted({*range(100, 106), grid.new})


def test_the_first_node_with_a_number_has_it_and_strangers_take_no_part(caplog):
    grid = LocalGrid(client_app(PLAIN), 6)
    second, stranger, odd = grid.add(2), grid.add(17), grid.add("x")
    outcome = conducted(PLAIN, grid)
    ordered = {m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"}
    assert ordered == set(range(100, 106)) and second > 105
    assert outcome.summary["weights_sha256"] == fingerprint(px.train(PLAIN).model)
    assert f"node {stranger} takes no part: its partition-id is 17, and workers are 0 to 5" in caplog.text
    assert f"node {odd} did not tell its partition-id" in caplog.text


def test_missing_clients_are_named_and_too_few_are_refused(caplog):
    outcome = conducted(PLAIN, LocalGrid(client_app(PLAIN), 4), SHORT)
    assert all(set(line["excluded"]) == {"4", "5"} for line in outcome.rounds)
    assert outcome.rounds[0]["excluded"]["5"] == "no node has partition-id 5"
    assert "no node has partition-id 4, 5; the run begins without" in caplog.text
    with pytest.raises(ValueError, match=r"4 of 6 workers have a node after 0.2 s, and the run needs 5; start"):
        conducted(PLAIN, LocalGrid(client_app(PLAIN), 4), SHORT, min_clients=5)


def test_another_run_at_a_client_is_told_and_named():
    other = run(px.fedavg(LOCAL, 3, clients=5))
    outcome = conducted(PLAIN, LocalGrid(client_app(other), 6))
    assert all("the server's run differs from this client's" in line["excluded"]["0"] for line in outcome.rounds)
    assert outcome.summary["lost_rounds"] == 3


def test_the_state_of_a_client_does_not_grow():
    sizes = []
    fedma = run(px.fedma(OWN, layers=2, passes=3))
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
    fedma = run(px.fedma(OWN, layers=2, passes=2))
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
    server_app(patience=AFTER, poll_s=0.01)(grid, context)
    assert px.RunFolder(tmp_path).summary["weights_sha256"] == fingerprint(px.train(PLAIN).model)
    chosen = server_app(lambda config: PLAIN if config["method"] == "plain" else None, patience=AFTER)
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
    outcome = strategy(PLAIN, patience=AFTER, poll_s=0.01).start(
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
        strategy(run(px.phase(px.gradient(), px.parse("reduce(dense())"))))
    with pytest.raises(ValueError, match=r"Flower carries gather\(...\) only"):
        strategy(run(px.phase(px.gradient(), px.parse("chain(vote(dense(), r=3), mean())"))))
    with pytest.raises(ValueError, match="not by a strategy around it"):
        strategy(PLAIN).configure_train(1, ArrayRecord(), ConfigRecord(), LocalGrid(client_app(PLAIN), 0))


def test_without_flower_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.delitem(sys.modules, "phalanx.flower")
    with pytest.raises(ImportError, match=r"pip install phalanx-train\[flower\]"):
        importlib.import_module("phalanx.flower")
    script = "import phalanx, sys; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_mods_stand_around_the_training():
    calls = []

    def mod(message, context, call_next):
        calls.append(message.metadata.message_type)
        return call_next(message, context)

    conducted(PLAIN, LocalGrid(client_app(PLAIN, mods=[mod]), 6))
    assert calls == ["train"] * 18

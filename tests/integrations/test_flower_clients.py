# SPDX-License-Identifier: Apache-2.0
"""Clients of Flower that fail, lie, leave, come back or never come."""

import json
import math

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'phalanx-train[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

import phalanx as px
from phalanx.integrations.flower import client_app
from phalanx.integrations.flower.node_registry import Node
from phalanx.integrations.flower.records import array, payload_of
from phalanx.training.model_state import fingerprint
from tests.federated.test_federated_worlds import LOCAL, OWN, run
from tests.integrations.flower_grid import SHORT, LocalGrid, conducted

PLAIN = run(px.federated.fedavg(LOCAL, 3))


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
    waits, late = [], Node.late
    monkeypatch.setattr(Node, "late", lambda node: waits.append(node.worker) or late(node))
    outcome = conducted(run(px.federated.fedavg(LOCAL, 5)), timeouts=SHORT, spoils={2: lambda reply: None})
    assert all("no answer within" in line["excluded"]["2"] for line in outcome.rounds)
    assert all(set(line["excluded"]) == {"2"} for line in outcome.rounds)
    waited = [line["work_s"] for line in outcome.rounds]
    # late in rounds 0 and 2, and again in 5; not waited for in 1, 3 and 4
    assert waited[0] >= 0.5 and waited[2] >= 0.2 and waits == [2, 2]


def test_a_client_out_of_a_pass_is_back_in_the_next():
    lost = iter([0, 0, 1])

    def once(reply):
        return None if next(lost, 0) else reply

    outcome = conducted(run(px.federated.fedma(OWN, layers=2, passes=3)), timeouts=SHORT, spoils={5: once})
    assert [line.get("clients") for line in outcome.rounds] == [None, None, None, [0, 1, 2, 3, 4], None, None]
    assert "5" in outcome.rounds[2]["excluded"] and outcome.summary["accuracy"] > 0.3


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
    runs = run(px.federated.fedavg(LOCAL, 3))
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


def test_a_number_belongs_to_a_node_s_key_where_the_owners_are_named(caplog):
    # the thief is there first, and claims the number of another
    grid = LocalGrid(client_app(PLAIN), 0)
    thief = grid.add(2)
    honest = {grid.add(worker): worker for worker in range(6)}
    outcome = conducted(PLAIN, grid, owners=honest)
    ordered = {m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"}
    assert ordered == set(honest) and thief not in ordered
    assert outcome.summary["weights_sha256"] == fingerprint(px.train(PLAIN).model)
    assert f"node {thief} takes no part: it owns no partition-id" in caplog.text
    assert not [m for m in grid.sent if m.metadata.message_type == "query"]


def test_owners_that_do_not_fit_are_refused():
    for owners in ({1: 0, 2: 0}, {1: 6}, {1: -1}):
        with pytest.raises(ValueError, match="owners names for each node one worker of 0 to 5"):
            px.flower.strategy(PLAIN, owners=owners)

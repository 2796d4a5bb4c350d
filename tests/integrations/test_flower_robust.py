# SPDX-License-Identifier: Apache-2.0
"""Strategies of Flower behind a gate and a robust rule."""

import copy
import random

import numpy as np
import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed: pip install 'phalanx-train[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
)

import phalanx as px
from phalanx.integrations.flower import compress, robust, strategy
from phalanx.integrations.flower.robust import _Patient
from tests.cases import each
from tests.integrations.flower_grid import LocalGrid

N = 8


def model():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(6, 5, generator=generator),
        "a.bias": torch.randn(6, generator=generator),
        "a.num_batches_tracked": torch.tensor(3),
    }


def app(mods=(), spread=0.1):
    """Clients that move the model towards a point of their own."""
    made = ClientApp(mods=list(mods))

    def moved(message, context, scale):
        part, index = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
        generator = torch.Generator().manual_seed(1000 * index + part)
        state = message.content["arrays"].to_torch_state_dict()
        out = {
            name: t - scale * (0.1 * t + spread * torch.randn(t.shape, generator=generator))
            if t.is_floating_point()
            else t + part + 1
            for name, t in state.items()
        }
        return part, out

    @made.train()
    def train(message, context):
        part, out = moved(message, context, 1.0)
        metrics = MetricRecord({"num-examples": 20 + part, "train_loss": 0.5 + part})
        return Message(RecordDict({"arrays": ArrayRecord(out), "metrics": metrics}), reply_to=message)

    @made.evaluate()
    def evaluate(message, context):
        part = int(context.node_config["partition-id"])
        metrics = MetricRecord({"num-examples": 20 + part, "accuracy": 0.1 * part})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def changed(arrays=None, metrics=None):
    """What spoils a reply."""

    def spoil(reply):
        if arrays is not None:
            reply.content["arrays"] = ArrayRecord(arrays(reply.content["arrays"].to_torch_state_dict()))
        if metrics is not None:
            reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **metrics})
        return reply

    return spoil


NAN = changed(lambda s: {**s, "a.bias": s["a.bias"] * torch.nan})
SHAPE = changed(lambda s: {**s, "a.bias": s["a.bias"][:-1]})
HEAVY = changed(metrics={"num-examples": 10**12})
LONG = changed(lambda s: {n: t * -1000 if t.is_floating_point() else t for n, t in s.items()})


def run(made, rounds=3, spoils=None, mods=(), grid=None, bare=False):
    grid = grid or LocalGrid(app(mods), N, spoils)
    np.random.seed(0)
    random.seed(0)
    return made.start(_Patient(grid, 0.0) if bare else grid, ArrayRecord(model()), rounds)


def private(inner):
    return DifferentialPrivacyServerSideFixedClipping(inner, 0.5, 5.0, N)


STRATEGIES = {
    "FedAvg": lambda: FedAvg(min_train_nodes=2),
    "FedAdam": lambda: FedAdam(eta=0.1),
    "FedProx": lambda: FedProx(proximal_mu=0.1),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.2),
    "FedMedian": FedMedian,
    "private FedAvg": lambda: private(FedAvg()),
}


@each("label", list(STRATEGIES))
def test_with_the_mean_and_honest_clients_it_is_the_strategy_alone(label):
    alone = run(STRATEGIES[label](), bare=True)
    made = robust(STRATEGIES[label](), poll_s=0.0)
    wrapped = run(made)
    assert {k: v.data for k, v in wrapped.arrays.items()} == {k: v.data for k, v in alone.arrays.items()}
    assert wrapped.train_metrics_clientapp == alone.train_metrics_clientapp
    assert wrapped.evaluate_metrics_clientapp == alone.evaluate_metrics_clientapp
    assert all(r == {"round": i + 1, "excluded": {}, "accused": {}, "lost": ""} for i, r in enumerate(made.rounds))


@each("label", list(STRATEGIES))
@each("rule", ["mean()", "krum(f=2)", "trimmed_mean(f=2)"])
def test_bad_clients_are_left_out_and_named(label, rule):
    if "private" in label and rule != "mean()":
        return
    bad = {1: NAN, 4: SHAPE, 6: HEAVY}
    grid = LocalGrid(app(), N, bad)
    made = robust(STRATEGIES[label](), rule, poll_s=0.0)
    found = run(made, grid=grid)
    assert all(np.isfinite(a).all() for a in found.arrays.to_numpy_ndarrays())
    for entry in made.rounds:
        assert set(entry["excluded"]) == {grid.node(part) for part in bad} and not entry["lost"]
        reasons = {part: entry["excluded"][grid.node(part)] for part in bad}
        assert "NaN" in reasons[1] and "'a.bias' is (5,)" in reasons[4] and "claimed weight" in reasons[6]
    # a client with NaN is accused from the first round on; the wrong form is a fault, and so is a wrong number
    assert set(made.rounds[0]["accused"]) == {grid.node(1)}
    # metrics are those of the others
    losses = {p: 0.5 + p for p in range(N) if p not in bad}
    weights = {p: 20 + p for p in losses}
    expected = sum(losses[p] * weights[p] for p in losses) / sum(weights.values())
    assert found.train_metrics_clientapp[1]["train_loss"] == pytest.approx(expected)


@each("rule", ["median()", "krum(f=2)", "geometric_median()", "chain(nnm(f=2), trimmed_mean(f=2))", "multi_krum(f=2)"])
def test_the_result_is_the_rule_on_differences(rule):
    grid = LocalGrid(app(), N, {3: LONG, 5: LONG})
    made = robust(FedAvg(), rule, poll_s=0.0)
    found = run(made, rounds=1, grid=grid).arrays.to_torch_state_dict()
    start, states = model(), {}
    for part in range(N):
        message = Message(
            RecordDict({"arrays": ArrayRecord(start), "config": ConfigRecord({"server-round": 1})}),
            grid.node(part),
            "train",
        )
        message.metadata.__dict__["_message_id"] = "x"
        states[part] = app()(message, grid.nodes[grid.node(part)]).content["arrays"].to_torch_state_dict()
    for part in (3, 5):
        states[part] = {n: t * -1000 if t.is_floating_point() else t for n, t in states[part].items()}
    rows = torch.stack(
        [torch.cat([(s[n] - start[n]).flatten() for n in ("a.weight", "a.bias")]) for s in states.values()]
    )
    expected = px.parse(rule).aggregate(rows, weights=[20 + p for p in range(N)])
    row = torch.cat([(found[n] - start[n]).flatten() for n in ("a.weight", "a.bias")])
    torch.testing.assert_close(row.float(), expected, rtol=1e-4, atol=1e-5)
    # of the counters 4 to 11 the lower median
    assert int(found["a.num_batches_tracked"].round()) == 7


def test_what_clients_can_write_ends_no_run():
    def raised(reply):
        raise_in_flower = RuntimeError("inflate")
        return raise_in_flower

    def records(reply):
        reply.content = RecordDict({"x": ArrayRecord(), "y": ArrayRecord(), "m": MetricRecord({"num-examples": 1})})
        return reply

    def garbage(reply):
        reply.content["arrays"] = ArrayRecord({"a.bias": Array("float32", (6,), "numpy.ndarray", b"\x93NUMPY garbage")})
        return reply

    for metrics in (
        {"num-examples": 0},
        {"num-examples": -5.0},
        {"num-examples": float("nan")},
        {"num-examples": [1, 2]},
    ):
        bad = {0: raised, 1: records, 2: garbage, 3: changed(metrics=metrics), 4: lambda reply: None}
        grid = LocalGrid(app(), N, bad)
        made = robust(FedAvg(), "median()", poll_s=0.0)
        found = made.start(grid, ArrayRecord(model()), 1, timeout=0.3)
        assert set(made.rounds[0]["excluded"]) == {grid.node(part) for part in bad}, made.rounds
        assert all(np.isfinite(a).all() for a in found.arrays.to_numpy_ndarrays())


def test_a_round_without_enough_rows_changes_nothing():
    grid = LocalGrid(app(), N, dict.fromkeys(range(5), NAN))
    made = robust(FedAvg(), "krum(f=2)", poll_s=0.0)
    found = run(made, rounds=2, grid=grid)
    for name, tensor in found.arrays.to_torch_state_dict().items():
        assert torch.equal(tensor, model()[name])
    assert all("the rows of 3 of 8 workers have come" in entry["lost"] for entry in made.rounds)
    # most rows are NaN, so nobody is accused of it
    assert not any(entry["accused"] for entry in made.rounds)


def test_long_rows_are_accused_and_left_out_for_good():
    grid = LocalGrid(app(), N, {2: LONG})
    made = robust(FedAvg(), "median()", exclude_after=1, poll_s=0.0)
    run(made, rounds=12, grid=grid)
    first = next(i for i, entry in enumerate(made.rounds) if entry["accused"])
    assert set(made.rounds[first]["accused"]) == {grid.node(2)}
    assert all("left out: accused" in entry["excluded"][grid.node(2)] for entry in made.rounds[first + 1 :])
    assert {n for entry in made.rounds for n in entry["accused"]} == {grid.node(2)}


def test_evaluation_is_of_plausible_metrics():
    class Liar(LocalGrid):
        def reply(self, message):
            reply = super().reply(message)
            part = self.nodes[message.metadata.dst_node_id].node_config["partition-id"]
            if message.metadata.message_type == "evaluate" and part in (1, 2, 3):
                more = {1: {"accuracy": float("nan")}, 2: {"other": 1.0}, 3: {"num-examples": -1}}[part]
                reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **more})
            return reply

    found = run(robust(FedAvg(), poll_s=0.0), rounds=1, grid=Liar(app(), N))
    parts = [p for p in range(N) if p not in (1, 2, 3)]
    expected = sum(0.1 * p * (20 + p) for p in parts) / sum(20 + p for p in parts)
    assert found.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(expected)


@each("codec", ["qsgd(bits=4)", "error_feedback(top_k(0.3))", "half()", "dense()"])
def test_clients_of_a_plain_app_code_what_they_reply(codec):
    grid = LocalGrid(app([compress(codec)]), N, {1: NAN if False else (lambda reply: None)})
    made = robust(FedAvg(), "mean()", codec=codec, poll_s=0.0)
    found = made.start(grid, ArrayRecord(model()), 3, timeout=0.3)
    plain = robust(FedAvg(), "mean()", poll_s=0.0).start(
        LocalGrid(app(), N, {1: lambda reply: None}), ArrayRecord(model()), 3, timeout=0.3
    )
    a, b = (x.arrays.to_torch_state_dict() for x in (found, plain))
    error = float((a["a.weight"] - b["a.weight"]).norm() / (b["a.weight"] - model()["a.weight"]).norm())
    assert error < {"dense()": 1e-5, "half()": 1e-2}.get(codec, 0.9), error
    assert float(a["a.num_batches_tracked"]) == pytest.approx(float(b["a.num_batches_tracked"]), rel=1e-4)
    assert all(set(entry["excluded"]) == {grid.node(1)} for entry in made.rounds)
    size = len(next(iter(grid.reply(grid.sent[0]).content["arrays"].values())).data)
    assert size < {"dense()": 1000, "half()": 500}.get(codec, 400)


def test_codec_and_server_must_agree():
    for mods, codec, words in (([compress("half()")], None, "no codec="), ((), "half()", "not coded")):
        made = robust(FedAvg(), "mean()", codec=codec, poll_s=0.0)
        run(made, rounds=1, grid=LocalGrid(app(mods), N))
        assert "no reply is left" in made.rounds[0]["lost"]
        assert all(words in reason for reason in made.rounds[0]["excluded"].values())
    made = robust(FedAvg(), "mean()", codec="qsgd(bits=4)", poll_s=0.0)
    run(made, rounds=1, grid=LocalGrid(app([compress("half()")]), N))
    assert made.rounds[0]["lost"] and len(made.rounds[0]["excluded"]) == N


@each(
    ("wrong", "words"),
    [
        (lambda: robust(FedAvg(), "chain(gather(dense()), median())"), "crosses a wire"),
        (lambda: robust(FedAvg(), "nnm(f=2)"), "rows where one update belongs"),
        (lambda: robust(FedAvg(), "qsgd(bits=4)"), "takes an aggregation rule"),
        (lambda: robust(FedAvg(), "median()", codec="median()"), "takes a codec"),
        (lambda: robust(FedAvg(), "median()", gate="median()"), "takes a gate"),
        (lambda: robust("FedAvg", "median()"), "wraps a strategy of Flower, got str"),
        (lambda: robust(private(FedAvg()), "krum(f=2)"), "one client may move the result by more"),
        (lambda: robust(FedAvg(), exclude_after=0), "rounds >= 1 or None, got 0"),
        (lambda: compress("median()"), "compress takes a codec"),
        (
            lambda: robust(
                strategy(
                    px.Run(
                        px.data.digits(), px.models.mlp(), (px.federated.fedavg(px.federated.local_training(), 1),), 3
                    )
                )
            ),
            "carries out its rounds by itself",
        ),
    ],
)
def test_misuse_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        wrong()


def states(n=7):
    generator = torch.Generator().manual_seed(5)
    return [
        {
            "w": torch.randn(3, 4, generator=generator),
            "b": torch.randn(2, generator=generator).double(),
            "k": torch.tensor(i),
        }
        for i in range(n)
    ]


@each("kind", [dict, ArrayRecord])
def test_rules_take_models(kind):
    given = states()
    given[2]["w"][0] = torch.nan
    given[4] = {"w": torch.zeros(3, 3), "b": torch.zeros(2).double(), "k": torch.tensor(0)}
    found = px.aggregators.trimmed_mean(f=3).aggregate([kind(copy.copy(s)) for s in given])
    assert type(found) is kind and list(found) == ["w", "b", "k"]
    found = found.to_torch_state_dict() if kind is ArrayRecord else found
    good = [s for i, s in enumerate(given) if i not in (2, 4)]
    rows = torch.stack([torch.cat([s["w"].flatten().double(), s["b"]]) for s in good])
    middle = rows.sort(dim=0).values[1:-1].mean(dim=0)
    torch.testing.assert_close(found["w"], middle[:12].reshape(3, 4).float())
    torch.testing.assert_close(found["b"], middle[12:])
    assert found["w"].dtype == torch.float32 and found["b"].dtype == torch.float64
    # 0, 1, 3, 5, 6
    assert int(found["k"]) == 3 and found["k"].dtype == torch.int64


def test_models_that_cannot_be_read_are_refused():
    for wrong, words in (
        ([{"a": object()}], "none of the 1 can be read"),
        ([{"a": torch.tensor(1)}], "floating-point"),
    ):
        with pytest.raises(ValueError, match=words):
            px.aggregators.median().aggregate(wrong)
    found = px.aggregators.median().aggregate([*states(3), "no model"])
    assert set(found) == {"w", "b", "k"}

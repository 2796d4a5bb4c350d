# SPDX-License-Identifier: Apache-2.0
"""Phases whose server sees the sum of the rows and no row alone."""

import os
import signal
from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.core.stack import Stack
from phalanx.core.wire_stage import check_server
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.cases import each
from tests.distributed.launch import run_job

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=20)
TRUSTED = px.parse("chain(gather(dense(), gate=gate(weights='trusted')), mean())")


def run(phase, workers=6, **options):
    options = {"partition": px.data.dirichlet(1.0, least=5), "evaluate_every": 1, "seed": 1} | options
    return px.Run(px.data.digits(), px.models.mlp((8,)), (phase,), workers=workers, **options)


def secured(text, clients=None, **options):
    clients = px.training.all_clients() if clients is None else px.federated.uniform(clients)
    return px.Phase(LOCAL, px.parse(text), px.optim.sgd(1.0), 3, clients=clients, secure=True, **options)


def logged(made):
    lines = []
    return px.train(made, listener=lines.append), lines


@pytest.mark.parametrize("clients", [None, 4])
def test_the_sum_is_that_of_a_server_who_sees_all_and_believes_all(clients):
    seen, lines = logged(run(secured("reduce(dense())", clients)))
    plain, others = logged(run(replace(secured("reduce(dense())", clients), scheme=TRUSTED, secure=False)))
    for a, b in zip(seen.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [line.get("clients") for line in lines] == [line.get("clients") for line in others]
    assert [line["bytes_up"] for line in lines] == [line["bytes_up"] for line in others]


def test_fedavg_has_a_secure_form():
    phase = px.federated.fedavg(LOCAL, 3, clients=4, secure=True)
    assert phase.scheme == px.parse("chain(reduce(dense()))") and phase.secure
    noisy = px.federated.fedprox(LOCAL, 3, secure=True, rule=px.noise(0.01))
    assert noisy.scheme == px.parse("chain(reduce(dense()), noise(std=0.01))")
    assert fingerprint(px.train(run(phase)).model) == fingerprint(px.train(run(secured("reduce(dense())", 4))).model)


@pytest.mark.parametrize(
    "text",
    [
        "chain(clip(norm=1.0), reduce(half()), noise(std=0.001))",
        "chain(alie(), clip(norm=1.0), reduce(error_feedback(half())), clip(norm=2.0))",
        "chain(replacement(), reduce(dense()))",
        "power_sgd(rank=2)",
    ],
)
@pytest.mark.parametrize("clients", [None, 3])
def test_what_acts_before_the_wire_or_on_the_sum_goes_on_and_nobodys_row_is_logged(text, clients):
    trainer, lines = logged(run(secured(text, clients), byzantine=px.adversary.workers((2, 4))))
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    for line in lines:
        assert not line["lost"] and not line["excluded"] and not line["outvoted"]
        assert "chosen" not in line and "observed" not in line


@pytest.mark.parametrize("rule", ["krum(f=1)", "median()", "trimmed_mean(f=1)", "geometric_median()", "foolsgold()"])
def test_a_rule_that_compares_rows_is_refused_with_a_way_out(rule):
    with pytest.raises(ValueError, match=r"sum of the rows only, and .* needs them one by one; let the workers clip"):
        Trainer(run(secured(f"chain(gather(dense()), {rule})")))


@each(
    ("text", "sentence"),
    [
        ("chain(gather(dense()), clip(norm=1.0), mean())", r"clip\(norm=1.0\) needs them one by one"),
        ("chain(gather(dense()), adaptive_clip(), mean())", r"adaptive_clip\(\) needs them one by one"),
        ("chain(gather(dense()), bucketing(size=2), mean())", r"bucketing\(size=2\) needs them one by one"),
        ("chain(gather(dense()), noise(std=0.1), mean())", r"noise\(std=0.1\) needs them one by one"),
        ("chain(vote(dense(), r=3), mean())", r"vote\(dense\(\), r=3\) needs them one by one"),
        (
            "chain(gather(dense()), mean())",
            r"to its gate one by one; write reduce\(dense\(\)\) in place of it and mean",
        ),
        ("chain(gather(qsgd()), mean(), noise(std=0.1))", r"gather\(qsgd\(\)\) hands them to its gate one by one"),
    ],
)
def test_what_needs_single_rows_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        Trainer(run(replace(secured(text), work=px.training.gradient(60))))


def test_one_row_is_no_sum():
    with pytest.raises(ValueError, match="1 takes part; let 2 or more"):
        Trainer(run(secured("reduce(dense())", 1)))
    # one is left of two
    faults = (px.parse("crash(worker=0, at=1)"),)
    trainer, lines = logged(run(secured("reduce(dense())"), workers=2, faults=faults))
    assert [line["lost"] for line in lines] == ["", *["one row has arrived, and secure=True sums 2 or more"] * 2]
    assert [line["excluded"] for line in lines] == [{}, *[{"0": "nothing arrived"}] * 2]
    once = px.train(run(replace(secured("reduce(dense())"), rounds=1), workers=2))
    assert fingerprint(trainer.model) == fingerprint(once.model)


def test_who_is_silent_has_no_part_in_the_sum():
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 5.0], [3.0, 4.0]])
    stack = Stack(rows, px.Layout.flat(2), ((0,), (1,), (2,)), torch.tensor([1.0, 7.0, 3.0], dtype=torch.float64))
    round = px.Round(world=px.LocalCollective(3), absent=frozenset({1}))
    out, _ = px.reduce(px.codecs.dense())(stack, None, round)
    assert out.rows.tolist() == [[2.5, 3.5]] and out.sources == ((0, 2),) and out.erased == 1
    assert [(n.worker, n.reason) for n in out.notes if n.kind == "excluded"] == [(1, "nothing arrived")]
    with pytest.raises(px.TooFewRows, match="nothing arrived"):
        px.reduce(px.codecs.dense())(stack, None, px.Round(world=px.LocalCollective(3), absent=frozenset({0, 1, 2})))


def test_observers_and_servers_see_single_rows_and_are_refused():
    made = run(secured("reduce(dense())"))
    with pytest.raises(ValueError, match="look at single rows, and secure=True shows nobody"):
        Trainer(replace(made, observers=(px.training.spectrum(),)))
    with pytest.raises(ValueError, match="secure=True shows it their sum only; run it in the simulation"):
        check_server(px.parse("reduce(dense())"), secure=True)


def test_the_field_is_kept_changed_and_not_needed():
    made = run(secured("reduce(dense())"))
    assert px.parse(repr(made)) == made and "secure=True" in repr(made)
    open_ = px.training.amend(made, "secure", False)
    assert open_.phases[0].secure is False and "secure" not in repr(open_)
    old = "phase(local_training(), chain(gather(dense()), mean()), sgd(lr=1.0), rounds=2, clients=uniform(clients=3))"
    assert px.parse(old).secure is False and repr(px.parse(old)) == old


def test_a_secure_run_goes_on_with_the_same_bits(tmp_path):
    made = run(secured("chain(reduce(error_feedback(half())))", 3), checkpoint_every=1)
    whole = px.train(made)

    def stop(line):
        if line["step"] == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(px.Interrupted):
        px.train(made, folder=px.training.RunFolder(tmp_path), listener=stop)
    again = px.train(made, folder=px.training.RunFolder(tmp_path))
    assert fingerprint(again.model) == fingerprint(whole.model)


@pytest.mark.processes
def test_processes_without_a_client_of_the_round_take_part_in_the_sum(tmp_path):
    runs = {text: run(secured(text, 2), workers=4, seed=3) for text in ("chain(reduce(dense()))", "power_sgd(rank=1)")}
    there = run_job(2, "job_train.py", {"runs": {label: repr(made) for label, made in runs.items()}}, tmp_path)
    for label, made in runs.items():
        trainer, lines = logged(made)
        # some round asks the workers of one process only
        assert any(len({worker // 2 for worker in line["clients"]}) == 1 for line in lines)
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        torch.testing.assert_close(torch.tensor(there[label]["weights"]), weights, rtol=1e-4, atol=1e-5)

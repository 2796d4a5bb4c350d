# SPDX-License-Identifier: Apache-2.0
"""Norms of the workers' rows, and whom the rules choose."""

from dataclasses import replace

import pytest
import torch

import phalanx as px
from phalanx.tools.report.collect import collect
from phalanx.tools.report.selected import holders, selected
from phalanx.training.model_state import fingerprint
from phalanx.training.trainer import Trainer
from tests.distributed.launch import run_job
from tests.examples import honest, round_of

LOCAL = px.federated.local_training(px.optim.sgd(0.1, momentum=0.9), batch=20)
BEFORE, ARRIVED = px.training.norms(), px.training.norms(every=2, arrived=True)


def run(scheme, rounds=3, **options):
    phase = px.Phase(
        LOCAL, px.parse(scheme), px.optim.sgd(1.0), rounds, clients=px.federated.with_attackers(3, (0,), every=2)
    )
    options = {
        "workers": 6,
        "byzantine": px.adversary.workers((0,)),
        "observers": (BEFORE, ARRIVED),
        "seed": 1,
    } | options
    return px.Run(px.data.digits(), px.models.mlp((8,)), (phase,), partition=px.data.dirichlet(1.0, least=5), **options)


def logged(made):
    lines = []
    return px.train(made, listener=lines.append), lines


def test_norms_are_those_of_the_directions():
    stack = honest()
    found = px.training.norms().look(stack, round_of())
    assert list(found) == [str(worker) for worker in stack.ids]
    assert list(found.values()) == pytest.approx(stack.rows[:, : stack.layout.stepped].double().norm(dim=1).tolist())
    rows = torch.tensor([[3.0, 4.0], [torch.nan, 1.0], [1e30, 1e30], [0.0, 0.0]])
    found = px.training.norms().look(px.Stack.of(rows), round_of(4))
    assert found == {"0": 5.0, "1": None, "2": pytest.approx(2**0.5 * 1e30), "3": 0.0}


def test_what_is_computed_and_what_arrives():
    made = run("chain(replacement(boost=4.0), gather(dense()), median())")
    trainer, lines = logged(made)
    rows = Trainer(made).compute_rows(0, lines[0]["clients"])[0].rows.double().norm(dim=1).tolist()
    before, arrived = (lines[0]["observed"][repr(one)] for one in (BEFORE, ARRIVED))
    assert list(before) == list(map(str, lines[0]["clients"])) and list(before.values()) == pytest.approx(rows)
    assert {w: x / before[w] for w, x in arrived.items()} == {w: pytest.approx(4 if w == "0" else 1) for w in before}
    assert set(lines[1]["observed"]) == {repr(BEFORE)} and "0" not in lines[1]["observed"][repr(BEFORE)]
    assert fingerprint(trainer.model) == fingerprint(px.train(replace(made, observers=())).model)


def test_who_is_excluded_does_not_arrive():
    _, lines = logged(run("chain(nan(), gather(dense()), median())", rounds=1))
    before, arrived = (lines[0]["observed"][repr(one)] for one in (BEFORE, ARRIVED))
    assert before["0"] is not None and set(before) - set(arrived) == {"0"} == set(lines[0]["excluded"])


def test_rows_that_do_not_arrive_one_by_one_cannot_be_looked_at():
    with pytest.raises(ValueError, match="looks at rows that gather"):
        Trainer(run("chain(reduce(dense()))"))
    Trainer(run("chain(reduce(dense()))", observers=(BEFORE,)))


@pytest.mark.processes
def test_several_processes_see_the_same(tmp_path):
    made = run("chain(replacement(boost=4.0), gather(dense()), median())")
    there = run_job(2, "job_train.py", {"runs": {"norms": repr(made)}}, tmp_path)["norms"]
    assert [line["observed"] for line in there["metrics"]] == [line["observed"] for line in logged(made)[1]]


@pytest.mark.processes
def test_a_server_sees_what_arrives(tmp_path):
    made = run("chain(gather(dense()), median())", observers=(px.training.norms(arrived=True),))
    task = {"runs": {"norms": repr(made)}, "timeouts": {"least_s": 10.0, "factor": 5.0}}
    lines = run_job(7, "job_server.py", task, tmp_path)["norms"]["metrics"]
    # on a busy machine a worker may be late, and is named
    shown = [(line, line["observed"][repr(made.observers[0])]) for line in lines if not line["lost"]]
    assert shown
    for line, norms in shown:
        assert set(norms) == set(map(str, line["clients"])) - set(line["excluded"]) and all(norms.values())


EDGES = px.backdoors.split_edge_cases(px.backdoors.rare_styles(), ratio=0.25, attacker=10)


def chosen_run(rule):
    phase = px.federated.fedavg(LOCAL, 6, rule=px.parse(rule))
    phase = replace(phase, clients=px.federated.with_attackers(5, (0,), every=3))
    data = px.backdoors.with_edge_cases(px.data.digits(), EDGES)
    return px.Run(
        data,
        px.models.mlp((8,)),
        (phase,),
        workers=9,
        byzantine=px.adversary.workers((0,)),
        partition=px.backdoors.assign_added(px.data.dirichlet(1.0, least=5), clients=3, drawn=True),
        seed=4,
        evaluate_every=6,
    )


def test_the_dealt_partition_knows_who_holds_edge_cases():
    made = chosen_run("krum(f=1)")
    data = made.data.load()
    parts = made.partition.parts(data, 9, 4)
    assert data.added == 30
    added = set(range(len(data.train_y) - 30, len(data.train_y)))
    assert (
        holders(made) == {w for w, part in enumerate(parts) if added & set(part.tolist())} and len(holders(made)) == 3
    )
    assert holders(replace(made, data=px.data.digits())) == frozenset()


def test_who_took_part_and_who_was_chosen(tmp_path):
    runs = {rule: chosen_run(rule) for rule in ("multi_krum(f=1)", "median()")}
    for rule, made in runs.items():
        px.train(made, folder=px.training.RunFolder(tmp_path / rule.partition("(")[0]))
    krum, median = collect([tmp_path / "multi_krum", tmp_path / "median"])
    lines, found = krum.metrics(), selected(krum)
    for one in found:
        assert one.rounds == sum(one.worker in line["clients"] for line in lines)
        assert one.chosen == sum(one.worker in line.get("chosen", []) for line in lines) <= one.rounds
        mine = "attacker" if one.worker == 0 else "honest, edge cases" if one.worker in holders(krum.job) else "honest"
        assert one.role == mine
    assert found[0].rounds == 2 and sum(one.rounds for one in found) == 30
    assert all(one.chosen is None for one in selected(median))

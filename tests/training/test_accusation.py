# SPDX-License-Identifier: Apache-2.0
"""Accusations: honest workers are not accused, loud liars are, and what is not known is not claimed."""

import copy
import math
import random
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import phalanx as px
from phalanx.core.codec import BadPayload
from phalanx.core.stack import Note
from phalanx.tools.report import tables
from phalanx.training import accusation
from phalanx.training.accusation import judge
from phalanx.training.worker_stats import WorkerStats


def run(scheme, workers, rounds, byzantine="none()", partition="iid()", batch=20):
    return px.parse(
        f"run(data=digits(), model=mlp(hidden=(16,)), phases=(phase(work=gradient(batch={batch * workers}), "
        f"scheme={scheme}, optimizer=sgd(lr=0.1), rounds={rounds}),), workers={workers}, byzantine={byzantine}, "
        f"partition={partition}, seed=1)"
    )


@pytest.mark.parametrize("scheme", ["chain(gather(dense()), mean())", "chain(gather(dense()), median())"])
@pytest.mark.parametrize("partition", ["iid()", "dirichlet(alpha=0.1)"])
def test_four_honest_workers_are_not_accused(scheme, partition):
    lines = []
    trainer = px.train(run(scheme, 4, 80, partition=partition), listener=lines.append)
    assert trainer.summary()["accused"] == []
    # beside: fewer than one row in a hundred is far from the result
    assert sum(len(line["far"]) for line in lines) <= 6
    table = tables.results_table([("honest", 0.9, trainer.summary())])
    assert [next(iter(column.cells)).plain.strip() for column in table.columns[-3:]] == ["none", "-", "-"]


def honest_stats(n, rounds, draw, spread, lasting, seed=0):
    """The statistics of honest rounds whose log lengths have a lasting part by worker and one of each round."""
    rng = random.Random(seed)
    stats = WorkerStats(n)
    odd = [spread * lasting * draw(rng) for _ in range(n)]
    for _ in range(rounds):
        lengths = [math.exp(x + spread * (1 - lasting) * draw(rng)) for x in odd]
        stats.add_round((), frozenset(), sizes={w: (x * x, x * x) for w, x in enumerate(lengths)})
    return stats


def laplace(rng):
    return rng.expovariate(1) - rng.expovariate(1)


@pytest.mark.parametrize("n", [4, 5, 7, 12, 30])
@pytest.mark.parametrize("draw", [random.Random.normalvariate, laplace])
@pytest.mark.parametrize("lasting", [0.0, 0.8])
def test_the_rates_are_those_that_are_stated(n, draw, lasting):
    rounds = 600 if n < 20 else 200
    stats = honest_stats(n, rounds, draw if draw is laplace else lambda rng: rng.normalvariate(0, 1), 0.7, lasting)
    assert not stats.accused and sum(stats.tested.values()) == n * rounds
    assert sum(stats.too_long.values()) <= 2 + 2 * accusation.ROUND_RATE * n * rounds


def test_an_accusation_needs_more_than_chance():
    needed = {t: next(k for k in range(t + 1) if accusation.is_certain(k, t, 4)) for t in (2, 20, 200, 2000, 200_000)}
    assert needed[2] == 2 and needed[20] <= 4 and needed[2000] < 30
    assert not accusation.is_certain(1, 1, 4)
    for t, k in needed.items():
        mean, sd = t * accusation.ROUND_RATE, math.sqrt(t * accusation.ROUND_RATE)
        assert k > mean + 3 * sd


def test_no_direction_is_too_long():
    rng = torch.Generator().manual_seed(0)
    stats = WorkerStats(10)
    for _ in range(50):
        rows = 0.01 * torch.randn(10, 40, generator=rng) + 1
        rows[3] *= -2.9
        sizes = {w: (float(r.square().sum()), float((r - 1).square().sum())) for w, r in enumerate(rows)}
        metrics, evidence = stats.add_round((), frozenset(), sizes=sizes)
        assert metrics["far"] == [3] and not evidence
    assert stats.far == {3: 50} and not stats.accused


@pytest.mark.parametrize("scheme", ["mean()", "median()", "krum(f=2)", "multi_krum(f=2)"])
def test_a_loud_liar_is_named_under_every_rule(scheme):
    made = run(f"chain(reverse(c=100), gather(dense()), {scheme})", 10, 12, "workers((1, 6))", batch=60)
    trainer = px.train(made)
    stats = trainer.worker_stats
    assert set(stats.accused) == {1, 6} and min(stats.accused.values()) == 11
    first = next(each for each in stats.evidence if each["worker"] == 6)
    assert first["round_index"] == 1 and first["rule"] == "length" and first["value"] > 50 > first["limit"] >= 3
    assert "in 2 of 2 rounds" in first["reason"]
    assert stats.precision == 1.0 and stats.recall == 11 / 12
    assert WorkerStats.from_json(stats.to_json()) == stats


def test_exact_evidence_counts_at_once_and_keeps_its_reason():
    stats = WorkerStats(5)
    heard = [Note("bytes", w, 8) for w in range(5)]
    wrong = [Note("outvoted", 2, reason="its row breaks the code"), Note("false_row", 4, reason="NaN")]
    _, evidence = stats.add_round([*heard, *wrong], frozenset(), index=7)
    assert [(e.round_index, e.worker, e.rule, e.reason) for e in evidence] == [
        (7, 2, "outvoted", "its row breaks the code"),
        (7, 4, "false_row", "its row has NaN"),
    ]
    # a worker is accused once a step, and nobody where most rows overflow; a message that is missing is no lie
    assert not stats.add_round([*heard, *wrong], frozenset(), index=7)[1]
    overflow = [Note("false_row", w, reason="Inf") for w in range(3)]
    silent = [Note("excluded", 4, reason="nothing arrived")]
    assert not stats.add_round([*heard, *overflow, *silent], frozenset(), index=8)[1]
    assert stats.accused == {2: 1, 4: 1} and stats.precision is None


def test_three_workers_are_too_few_to_tell():
    lines = []
    px.train(run("chain(reverse(), gather(dense()), median())", 3, 3, "workers((1,))"), listener=lines.append)
    assert all(line["untold"].startswith("too few workers to tell: 3 rows") for line in lines)
    assert not any(line["far"] or line["accused"] for line in lines)


class Threads(px.LocalCollective):
    """Workers in one thread each, that wait for each other."""

    def __init__(self, rank, table, barrier):
        super().__init__(len(table))
        self.local_workers, self.rank, self._table, self._barrier = (rank,), rank, table, barrier

    def gather(self, payloads, limit_bytes):
        self._table[self.rank] = payloads[0]
        self._barrier.wait(timeout=60)
        everything = [BadPayload("nothing arrived") if p is None else p for p in self._table]
        self._barrier.wait(timeout=60)
        return everything


def loops(make, n, steps):
    """What each of n workers' loops gives: `make` builds it from a network and a world."""
    table, barrier, seen, start = [None] * n, threading.Barrier(n), [None] * n, nn.Linear(4, 3)

    def work(rank):
        net = copy.deepcopy(start)
        exchange, out = make(net, Threads(rank, table, barrier)), []
        for step in range(steps):
            rng = torch.Generator().manual_seed(100 * step + rank)
            x, y = torch.randn(500, 4, generator=rng), torch.randint(3, (500,), generator=rng)
            net.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer = torch.optim.SGD(net.parameters(), 0.1)
            for act in (exchange, optimizer.step) if isinstance(exchange, px.exchange) else (optimizer.step, exchange):
                out.append(act())
        seen[rank] = exchange, [line for line in out if line]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert all(seen)
    return seen


ATTACKED = "chain(reverse(c=1000), gather(dense()), mean())"


def test_ones_own_loop_names_the_liar_and_leaves_it_out():
    told = {"on_excluded": [], "on_accused": []}
    options = {"byzantine": px.adversary.workers((1,)), "exclude_after": 3}

    def make(net, world):
        listeners = {name: told[name].append for name in told} if world.rank == 0 else {}
        return px.exchange(net, ATTACKED, world=world, **options, **listeners)

    seen = loops(make, 8, 8)
    first, lines = seen[0]
    assert all(exchange.session.ledger == first.session.ledger for exchange, _ in seen)
    assert [(e.worker, e.round_index, e.rule) for e in told["on_accused"]] == [(1, r, "length") for r in (1, 2, 3)]
    assert [(e.worker, e.round_index) for e in told["on_excluded"]] == [(1, r) for r in range(4, 8)]
    assert all(e.reason == "left out: accused in 3 rounds" for e in told["on_excluded"])
    assert all(line["accused"] == {} and line["far"] == [] for line in lines[4:])
    # who is left out stays so behind a checkpoint
    again = px.exchange(nn.Linear(4, 3), ATTACKED, world=first.session.world, **options)
    again.load_state_dict(first.state_dict())
    assert again.session._without_excluded() is not again.session.world


def test_diloco_names_the_liar_too():
    told = {rank: [] for rank in range(8)}

    def make(net, world):
        liar, told_here = px.adversary.workers((2,)), told[world.rank].append
        return px.DiLoCo(net, ATTACKED, 1, world=world, byzantine=liar, on_accused=told_here, exclude_after=1)

    (_, lines), *_ = loops(make, 8, 4)
    assert [list(line["accused"]) for line in lines] == [[], ["2"], [], []]
    assert [list(line["excluded"]) for line in lines] == [[], [], ["2"], ["2"]]
    assert all([(e.worker, e.round_index) for e in each] == [(2, 1)] for each in told.values())


@pytest.mark.parametrize("k", [0, -1])
def test_exclude_after_is_a_count(k):
    with pytest.raises(ValueError, match=f"exclude_after is >= 1 or None, got {k}"):
        px.exchange(nn.Linear(2, 2), "chain(gather(dense()), median())", world=px.LocalCollective(1), exclude_after=k)


def test_a_sum_leaves_nobody_out():
    with pytest.raises(ValueError, match="shows the sum of all rows"):
        px.exchange(nn.Linear(2, 2), "reduce(dense())", world=px.LocalCollective(1), exclude_after=2)


def test_a_size_that_is_no_number_counts_as_infinite():
    sizes = {worker: (1.0 + worker / 100, 1.0) for worker in range(6)}
    for size in (float("nan"), float("inf")):
        found = judge({**sizes, 6: (size, size)})
        assert set(found.too_long) == {6} and found.far == (6,), size

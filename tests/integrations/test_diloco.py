# SPDX-License-Identifier: Apache-2.0
"""Many local steps between two exchanges, in one's own loop."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import phalanx as px


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


def batch(step, rank):
    rng = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(8, 4, generator=rng), torch.randint(3, (8,), generator=rng)


def steps(model, optimizer, outer, which, rank):
    for step in which:
        x, y = batch(step, rank)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        outer()


def alone(**options):
    return px.DiLoCo(net(), world=px.LocalCollective(1), **options)


class Both(px.LocalCollective):
    """Two workers, one in each of two threads, that wait for each other."""

    def __init__(self, rank, table, barrier):
        super().__init__(2)
        self.local_workers, self.rank, self._table, self._barrier = (rank,), rank, table, barrier

    def gather(self, payloads, limit_bytes):
        self._table[self.rank] = payloads[0]
        self._barrier.wait(timeout=60)
        both = list(self._table)
        self._barrier.wait(timeout=60)
        return both


def together(scheme, rounds=3, every=4):
    """The models of two processes that train with a scheme."""
    table, barrier, models = [None, None], threading.Barrier(2), [net(), net()]

    def work(rank):
        optimizer = torch.optim.SGD(models[rank].parameters(), 0.1, 0.9)
        outer = px.DiLoCo(models[rank], scheme, every, world=Both(rank, table, barrier))
        steps(models[rank], optimizer, outer, range(rounds * every), rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return models


def test_the_outer_step_is_nesterov_along_the_mean_change():
    models = together("chain(gather(dense()), mean())")
    start, velocity, copies = net(), None, [net(), net()]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1, 0.9) for m in copies]
    for turn in range(3):
        for rank, (model, optimizer) in enumerate(zip(copies, optimizers, strict=True)):
            steps(model, optimizer, lambda: None, range(4 * turn, 4 * turn + 4), rank)
        change = [
            s - (a + b) / 2 for s, a, b in zip(start.parameters(), *(m.parameters() for m in copies), strict=True)
        ]
        velocity = change if velocity is None else [0.9 * v + c for v, c in zip(velocity, change, strict=True)]
        statistics = [(a + b) / 2 for a, b in zip(*(m[1].buffers() for m in copies), strict=True)]
        with torch.no_grad():
            for p, v, c in zip(start.parameters(), velocity, change, strict=True):
                p.sub_(0.7 * (c + 0.9 * v))
            for model in copies:
                for p, q in zip(model.parameters(), start.parameters(), strict=True):
                    p.copy_(q)
                model[1].running_mean.copy_(statistics[0])
                model[1].running_var.copy_(statistics[1])
    for model in models:
        for p, q in zip(model.parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scheme",
    ["chain(gather(error_feedback(sign(scaled=True))), mean())", "chain(clip(1.0), gather(qsgd(bits=4)), median())"],
)
def test_processes_stay_alike_under_codecs_and_rules(scheme):
    first, second = together(scheme)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert p.equal(q)


def test_it_goes_on_from_its_state():
    whole, cut = alone(every=3), alone(every=3)
    pairs = [(o, torch.optim.SGD(o.model.parameters(), 0.1)) for o in (whole, cut)]
    for outer, optimizer in pairs:
        steps(outer.model, optimizer, outer, range(7 if outer is cut else 12), 0)
    again = alone(every=3)
    again.model.load_state_dict(cut.model.state_dict())
    again.load_state_dict(copy.deepcopy(cut.state_dict()))
    steps(again.model, torch.optim.SGD(again.model.parameters(), 0.1), again, range(7, 12), 0)
    for p, q in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert p.equal(q)


def test_a_lost_exchange_goes_back_to_the_last_outer_step():
    outer = alone(scheme="chain(gather(dense(), gate=gate(limit=1e-9)), mean())", every=2)
    before = [p.detach().clone() for p in outer.model.parameters()]
    optimizer = torch.optim.SGD(outer.model.parameters(), 0.1)
    steps(outer.model, optimizer, lambda: None, range(1), 0)
    assert outer() is None
    assert "needs" in outer()["lost"]
    assert all(p.equal(q) for p, q in zip(outer.model.parameters(), before, strict=True))


def test_what_is_no_outer_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"assign_weights\(\) is no outer optimizer"):
        alone(optimizer="assign_weights()")
    with pytest.raises(ValueError, match="got every=0"):
        alone(every=0)


def test_a_schedule_that_needs_an_end_is_refused():
    with pytest.raises(ValueError, match="outer steps have no end"):
        alone(optimizer="sgd(lr=0.7, schedule=cosine())")
    alone(optimizer="sgd(lr=0.7, schedule=decay(by=0.99))")

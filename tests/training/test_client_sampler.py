# SPDX-License-Identifier: Apache-2.0
"""Workers that take part in every round, and the samples that a server keeps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import phalanx as px


@given(st.integers(1, 3), st.integers(1, 5), st.integers(0, 20), st.integers(0, 5))
def test_the_last_take_part_always_and_the_others_as_without_them(last, clients, index, seed):
    others = px.federated.uniform(clients)
    n = clients + last + 3
    chosen = px.federated.with_fixed(others, last).sample(index, n, seed)
    assert chosen[-last:] == tuple(range(n - last, n)) and px.federated.with_fixed(others, last).count(n) == len(chosen)
    assert chosen[:-last] == others.sample(index, n - last, seed)


@given(st.integers(1, 30), st.integers(2, 6), st.integers(0, 5))
def test_the_last_unit_has_its_samples_and_nobody_else_has_them(amount, units, seed):
    labels = torch.arange(60) % 3
    parts = px.data.reserve(px.data.iid(), amount).split(labels, units, seed)
    assert len(parts) == units and len(parts[-1]) == amount
    assert torch.cat(parts).sort().values.equal(torch.arange(60))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="leaves no sample for some unit, with 6 samples for 3 units; lower amount"):
        px.data.reserve(px.data.iid(), 5).split(torch.zeros(6), 3, 0)
    with pytest.raises(ValueError, match="needs more than 2 workers, got n=2"):
        px.federated.with_fixed(px.federated.uniform(1), 2).count(2)
    with pytest.raises(ValueError, match="last=0"):
        px.federated.with_fixed(px.federated.uniform(1), 0)
    with pytest.raises(ValueError, match="amount=0"):
        px.data.reserve(px.data.iid(), 0)


def test_fltrust_runs_with_a_root_in_every_round():
    local = px.federated.local_training(px.optim.sgd(0.1), epochs=1, batch=10)
    phase = px.federated.fedavg(local, 3, rule=px.aggregators.fltrust(root=8))
    phase = px.training.amend(phase, "clients", px.federated.with_fixed(px.federated.uniform(3)))
    run = px.Run(
        px.data.digits(),
        px.models.mlp((8,)),
        (phase,),
        workers=9,
        partition=px.data.reserve(px.data.dirichlet(0.5), 50),
    )
    lines = []
    trained = px.train(run, listener=lines.append)
    assert all(line["clients"][-1] == 8 and len(line["clients"]) == 4 and not line["lost"] for line in lines)
    assert trained.summary()["accuracy"] > 0.2

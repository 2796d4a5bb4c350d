# SPDX-License-Identifier: Apache-2.0
"""Lower ranks for models of low rank, and stable ranks that settle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import phalanx as px
from phalanx.lowrank.merge import applied, low_rank_layers
from tests.lowrank.full_rank import close, full_rank
from tests.lowrank.test_plan import Language
from tests.lowrank.test_pretrained import Small


def narrowed(low, rank, seed=0):
    """The model with every product of this rank, or of a smaller one that it had, in factors of the old shape."""
    torch.manual_seed(seed)
    done = set()
    for layer in low_rank_layers(low).values():
        for factor in layer.factors:
            u, v = layer.pair(factor)
            if id(u) in done:
                continue
            done.add(id(u))
            r = v.shape[1]
            mix = torch.randn(factor.copies, r, min(rank, r)) @ torch.randn(factor.copies, min(rank, r), r) / r
            with torch.no_grad():
                v.copy_((v.reshape(factor.copies, factor.rows, r) @ mix).reshape(v.shape))
    return low


def ranks(model):
    return {entry.name: entry.rank for entry in applied(model)}


models = {
    "every family": (Small, lambda: torch.randn(2, 3, 5)),
    "tied embedding": (Language, lambda: torch.randint(50, (5, 2))),
    "groups": (lambda: nn.Conv2d(16, 32, 3, groups=2), lambda: torch.randn(2, 16, 5, 5)),
    "gru": (lambda: nn.GRU(12, 12, 2, bidirectional=True), lambda: torch.randn(4, 2, 12)),
}


def output(model, x):
    found = model.eval()(x)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("name", models)
@pytest.mark.parametrize("rank", [1, 2])
def test_a_product_of_smaller_rank_gets_it_and_the_function_stays(name, rank, tmp_path):
    make, sample = models[name]
    torch.manual_seed(1)
    low, x = narrowed(full_rank(make()), rank), sample()
    before, small = ranks(low), px.lowrank.adapt(low, 1.0)
    assert set(ranks(small).values()) == {rank} and ranks(low) == before
    assert close(output(small, x), output(low, x))
    assert not {p.data_ptr() for p in small.parameters()} & {p.data_ptr() for p in low.parameters()}
    for layer in low_rank_layers(small).values():
        for factor in layer.factors:
            u, v = layer.pair(factor)
            left = v.reshape(factor.copies, factor.rows, rank)
            right = u.reshape(factor.copies, rank, factor.columns)
            assert torch.allclose(left.mT @ left, right @ right.mT, atol=1e-5)
    assert close(output(px.lowrank.merge(small), x), output(low, x))
    px.lowrank.save_pretrained(small, tmp_path)
    assert torch.equal(output(px.lowrank.from_pretrained(tmp_path, make), x), output(small, x))
    assert ranks(px.lowrank.adapt(small, 1.0)) == ranks(small)


def test_ties_stay_and_in_place_is_the_same_model():
    low, x = narrowed(px.factorize(Language(), 1 / 4, embedding=True), 3), torch.randint(50, (5, 2))
    low.rnn.u_hh_l0.requires_grad_(False)
    wanted = output(low, x)
    assert px.lowrank.adapt(low, 1.0, inplace=True) is low and close(output(low, x), wanted)
    assert low.embed.u is low.head.u and low.embed.v is low.head.v and low.embed.v.shape == (50, 3)
    assert not low.rnn.u_hh_l0.requires_grad and low.rnn.v_hh_l0.requires_grad
    output(low.train(), x).sum().backward()
    assert low.embed.u.grad.any()


def test_an_optimizer_is_carried_on():
    low, x = narrowed(px.factorize(Language(), 1 / 4, embedding=True), 3), torch.randint(50, (5, 2))
    optimizer = torch.optim.Adam(low.parameters(), lr=1e-3)
    output(low.train(), x).square().sum().backward()
    optimizer.step()
    small = px.lowrank.adapt(low, 0.9)
    px.lowrank.transfer_optimizer(optimizer, low, small)
    assert {id(p) for p in small.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}
    output(small.train(), x).square().sum().backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in small.parameters())


@given(st.integers(2, 12), st.integers(2, 12), st.floats(0.05, 1.0), st.integers(0, 99))
def test_the_rank_is_the_smallest_that_holds_the_energy_and_never_rises(rows, columns, energy, seed):
    torch.manual_seed(seed)
    low = full_rank(nn.Linear(columns, rows)).double()
    squares = torch.linalg.svdvals(low.weight.detach()).square()
    small = px.lowrank.adapt(low, energy)
    rank = small.v.shape[1]
    assert rank <= low.v.shape[1] and squares[:rank].sum() >= energy * squares.sum() * (1 - 1e-12)
    assert rank == 1 or squares[: rank - 1].sum() < energy * squares.sum()
    lost = (low.weight - small.weight).detach().square().sum()
    assert torch.allclose(lost, squares[rank:].sum(), atol=1e-9)
    if rank == low.v.shape[1]:
        assert torch.equal(small.v, low.v) and torch.equal(small.u, low.u)


def test_hostile_factors():
    low = px.factorize(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)), 1 / 4)
    with torch.no_grad():
        low[0].u.zero_()
        low[1].v.mul_(1e20)
        low[1].u.mul_(1e15)
    small = px.lowrank.adapt(low, 0.5)
    assert small[0].v.shape == (16, 4) and small[1].v.shape[1] < 4 and small[1].v.isfinite().all()
    with torch.no_grad():
        low[1].u[0, 0] = float("inf")
    with pytest.raises(ValueError, match="layer '1' has factors that are not finite"):
        px.lowrank.adapt(low)
    before = [p.clone() for p in low.parameters()]
    with pytest.raises(ValueError, match="not finite"):
        px.lowrank.adapt(low, 0.1, inplace=True)
    assert all(torch.equal(p, q) for p, q in zip(low.parameters(), before, strict=True))
    with torch.device("meta"), pytest.raises(ValueError, match="layer '' has factors without data"):
        px.lowrank.adapt(px.factorize(nn.Linear(16, 16), 1 / 4))
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"energy={wrong}"):
            px.lowrank.adapt(low, wrong)
    dense = nn.Linear(3, 3)
    assert torch.equal(px.lowrank.adapt(dense).weight, dense.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_factors_keep_their_dtype_and_layout(dtype):
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, 3).to(dtype).to(memory_format=torch.channels_last)
    low = px.factorize(conv, 1 / 2)
    with torch.no_grad():
        low.v[:, 2:] = 0
    small = px.lowrank.adapt(low, 1.0)
    assert small.v.shape[1] == 2 and small.v.dtype == small.u.dtype == dtype
    assert small.u.is_contiguous(memory_format=torch.channels_last)
    assert close(small.weight.float(), low.weight.float(), 2e-2)


def test_stable_ranks_of_a_plan_of_names_and_of_all():
    torch.manual_seed(0)
    model = Language()
    every = px.lowrank.stable_ranks(model)
    assert list(every) == [entry.name for entry in px.lowrank.plan(model)]
    plan = px.lowrank.plan(model)
    assert list(px.lowrank.stable_ranks(model, plan)) == [entry.name for entry in plan if entry.rank is not None]
    w = model.rnn.weight_hh_l1.detach().unflatten(0, (4, 32))
    wanted = w.square().sum((1, 2)) / torch.linalg.matrix_norm(w, 2).square()
    assert px.lowrank.stable_ranks(model, ["rnn.weight_hh_l1"]) == {
        "rnn.weight_hh_l1": pytest.approx(float(wanted.mean()))
    }
    with pytest.raises(ValueError, match=r"no weight 'rn' of the model can be factorized; .*choose from embed"):
        px.lowrank.stable_ranks(model, ["rn"])
    with pytest.raises(ValueError, match="low-rank layers already"):
        px.lowrank.stable_ranks(px.factorize(model, 1 / 4))
    with torch.no_grad():
        model.rnn.weight_hh_l1.fill_(math.nan)
    with pytest.raises(ValueError, match=r"layer 'rnn.weight_hh_l1' has no stable rank: .*not finite"):
        px.lowrank.stable_ranks(model)


def falling(*rates):
    """Ten looks at weights whose stable ranks fall by these rates a look."""
    return [{str(i): 20 * (1 - rate) ** t for i, rate in enumerate(rates)} for t in range(10)]


def test_weights_have_settled_when_enough_of_them_change_little():
    assert px.lowrank.ranks_converged(falling(0.01, 0.001)) and not px.lowrank.ranks_converged(falling(0.01, 0.05))
    assert px.lowrank.ranks_converged(falling(0.01, 0.05), tolerance=0.06) and px.lowrank.ranks_converged(
        falling(0.01, 0.05), share=0.5
    )
    assert px.lowrank.ranks_converged(falling(*[0.001] * 9, 0.5)) and not px.lowrank.ranks_converged(
        falling(*[0.001] * 8, 0.5, 0.5)
    )
    assert (
        not px.lowrank.ranks_converged([])
        and not px.lowrank.ranks_converged(falling(0.0)[:3])
        and px.lowrank.ranks_converged(falling(0.0)[:4])
    )
    assert not px.lowrank.ranks_converged([{}] * 9) and px.lowrank.ranks_converged([{"zero": 0.0}] * 4)
    assert px.lowrank.ranks_converged([*falling(0.3), *[{"0": 5.0}] * 4]) and not px.lowrank.ranks_converged(
        [*falling(0.3), *[{"0": 5.0}] * 2]
    )
    turning = [{"0": rank} for rank in (10.0, 12.0, 12.0, 10.0)]
    assert not px.lowrank.ranks_converged(turning)  # back where it was, and not at rest


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=5), st.floats(1e-3, 1e3))
def test_a_scale_has_no_say(rates, scale):
    history = falling(*rates)
    scaled = [{name: scale * rank for name, rank in look.items()} for look in history]
    near = any(abs(change(rate) - 0.02) < 1e-6 for rate in rates)
    assert near or px.lowrank.ranks_converged(history) == px.lowrank.ranks_converged(scaled)


def change(rate):
    ranks = [(1 - rate) ** t for t in range(4)]
    return (1 - ranks[-1]) / (3 * sum(ranks) / 4)


def test_wrong_histories_are_refused():
    for wrong in ({"tolerance": -1.0}, {"window": 0}, {"share": 0.0}, {"share": 1.1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            px.lowrank.ranks_converged(falling(0.1), **wrong)
    with pytest.raises(ValueError, match="look 1 of the history is at other weights"):
        px.lowrank.ranks_converged([{"a": 1.0}, {"b": 1.0}])
    with pytest.raises(ValueError, match="look 1 of the history has stable rank nan for 'a'"):
        px.lowrank.ranks_converged([{"a": 1.0}, {"a": math.nan}])

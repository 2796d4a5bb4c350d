import json
import random
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import phalanx as px
from phalanx.core.pytree import cut, from_payload, to_payload
from phalanx.distributed.determinism import apart, compare_computations, digest, sketch
from phalanx.distributed.recompute import recompute, snapshot
from phalanx.integrations.sdc import Finding, _pairs_of
from tests.cases import each


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.body(x)


def loss_function(net, x, y):
    # a loss that draws from every generator
    noise = random.random() + np.random.rand() + float(torch.rand(()))
    return nn.functional.cross_entropy(net(x), y) * (1 + noise)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 6, generator=generator), torch.randint(3, (5,), generator=generator)


@each("n", range(2, 14))
def test_every_two_ranks_meet_once(n):
    audits = n - 1 + n % 2
    met = [pair for audit in range(audits) for pair in _pairs_of(n, audit)]
    assert sorted(met) == sorted(combinations(range(n), 2))
    for audit in range(3 * audits):
        ranks = [rank for pair in _pairs_of(n, audit) for rank in pair]
        assert len(ranks) == len(set(ranks)) == n - n % 2
        assert _pairs_of(n, audit) == _pairs_of(n, audit + audits)


def test_a_replay_leaves_everything_as_it_was():
    net = Net()
    net.body[2].eval()
    x, y = batch()
    nn.functional.cross_entropy(net(x), y).backward()
    fired = []
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(fired.append)
    grads = {n: None if p.grad is None else (p.grad, p.grad.clone()) for n, p in net.named_parameters()}
    buffers = {n: (b, b.clone(), b._version) for n, b in net.named_buffers()}
    modes = [m.training for m in net.modules()]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    recompute(net, loss_function, (x, y), snapshot(net), seed=3)
    assert torch.equal(torch.get_rng_state(), generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert [m.training for m in net.modules()] == modes and fired == []
    for name, parameter in net.named_parameters():
        before = grads[name]
        assert parameter.grad is (None if before is None else before[0])
        assert before is None or torch.equal(parameter.grad, before[1])
    for name, buffer in net.named_buffers():
        same, bits, version = buffers[name]
        assert buffer is same and torch.equal(buffer, bits) and buffer._version == version


def test_a_replay_that_fails_leaves_everything_as_it_was():
    net = Net()
    buffers, state = dict(net.named_buffers()), torch.get_rng_state()

    def broken(net, x, y):
        net(x)
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        recompute(net, broken, batch(), {**snapshot(net), "training": [False] * 7}, seed=0)
    assert all(m.training for m in net.modules()) and torch.equal(torch.get_rng_state(), state)
    assert all(buffer is buffers[name] for name, buffer in net.named_buffers())


def test_a_replay_gives_what_training_computes():
    net = Net()
    x, y = batch()
    answer = recompute(net, lambda net, x, y: nn.functional.cross_entropy(net(x), y), (x, y), snapshot(net), seed=5)
    torch.manual_seed(5)
    loss = nn.functional.cross_entropy(net(x), y)
    loss.backward()
    assert torch.equal(answer.loss, loss)
    assert answer.gradients["idle.weight"] is None
    for name, parameter in net.named_parameters():
        assert parameter.grad is None or torch.equal(answer.gradients[name], parameter.grad)


def test_the_same_seed_and_state_give_the_same_bits_and_others_do_not():
    net = Net()
    state, inputs = snapshot(net), batch()
    first = digest(recompute(net, loss_function, inputs, state, seed=1))
    net.body[1].running_mean += 1
    net.eval()
    assert digest(recompute(net, loss_function, inputs, state, seed=1)) == first
    assert digest(recompute(net, loss_function, inputs, state, seed=2)) != first
    assert digest(recompute(net, loss_function, inputs, snapshot(net), seed=1)) != first


def test_digests_see_every_bit_and_the_form():
    x = torch.randn(40, 50)
    digests = {digest([("a", x)])}
    for i, j in ((0, 0), (39, 49), (17, 3)):
        for bit in (0, 22, 31):
            y = x.clone()
            y.view(torch.int32)[i, j] ^= -(2**31) if bit == 31 else 1 << bit
            digests.add(digest([("a", y)]))
    digests |= {digest([("b", x)]), digest([("a", x.reshape(50, 40))]), digest([("a", x.view(torch.int32))])}
    digests |= {digest([("a", None)]), digest([("a", torch.zeros(0))]), digest([])}
    assert len(digests) == 1 + 9 + 3 + 3
    assert digest([("a", x.t().contiguous().t())]) == digest([("a", x)])
    assert digest([("a", x.bfloat16())]) != digest([("a", x.half())])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sketches_tell_distances(dtype):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3000, generator=generator).to(dtype)
    for size in (1e-1, 1e-2):
        y = (x.double() + size * torch.randn(3000, generator=generator)).to(dtype)
        true = float((x.double() - y.double()).norm() / x.double().norm())
        told = apart(sketch([("g", x)]), sketch([("g", y)]))
        # 4 % in the mean for the distance, and as much for the scale
        assert told == pytest.approx(true, rel=0.25)
    assert apart(sketch([("g", x)]), sketch([("g", x)])) == 0.0


def test_one_wrong_entry_is_not_lost_in_a_sketch():
    x = torch.randn(5000)
    for i in (0, 255, 256, 4999):
        y = x.clone()
        y[i] += 0.5
        assert float((sketch([("g", x)]) - sketch([("g", y)])).norm()) == pytest.approx(0.5, rel=1e-6)


def test_losses_count_by_themselves_and_infinities_differ_from_numbers():
    g = torch.ones(10)
    assert (
        apart(sketch([("loss", torch.tensor(2.0)), ("g", g)]), sketch([("loss", torch.tensor(1.0)), ("g", g)])) == 0.5
    )
    broken = g.clone()
    broken[3] = float("nan")
    assert apart(sketch([("g", broken)]), sketch([("g", g)])) == float("inf")
    assert apart(sketch([("g", broken)]), sketch([("g", broken)])) == 0.0


def test_rows_of_one_process_are_compared():
    rows = torch.ones(5, 100)
    world = px.LocalCollective(5)
    assert px.sdc.compare_rows(world, rows).is_deterministic
    assert px.sdc.compare_rows(world, rows[0]).groups == ((0, 1, 2, 3, 4),)
    rows[1, 3] += 1e-3
    rows[4] *= 2
    found = px.sdc.compare_rows(world, rows)
    assert not found.is_deterministic and found.groups == ((0, 2, 3), (1,), (4,))
    assert found.difference == pytest.approx(0.5, rel=0.01)
    assert found.digests[0] == found.digests[2] != found.digests[1]
    assert str(found) == "workers 0, 2, 3 agree bit for bit; workers 1, 4 differ by up to 5.0e-01 (relative)"
    with pytest.raises(ValueError, match="has 5 workers and rows of 3"):
        px.sdc.compare_rows(world, rows[:3])


def test_exact_in_one_process_asks_whether_kernels_are_deterministic():
    net, world = Net(), px.LocalCollective(3)
    assert px.sdc.check_determinism(net, loss_function, *batch(), world=world).is_deterministic
    calls = []

    def drifting(net, x, y):
        calls.append(1)
        return loss_function(net, x, y) + len(calls)

    found = compare_computations(world, net, drifting, batch())
    assert found.groups == ((0, 1, 2),) and found.unsteady == (0, 1, 2) and not found.is_deterministic
    assert "not deterministic" in str(found)


def test_micro_batches_travel_as_they_are():
    tree = {
        "image": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "mask": (torch.tensor([True, False, True, True]), [torch.arange(4), None]),
        7: torch.randn(4, 2, dtype=torch.complex64),
        "plain": ("word", 3, 2.5, True, torch.tensor(1.5)),
        "strided": torch.randn(5, 4).t(),
        "empty": torch.zeros(0, 2, dtype=torch.bfloat16),
    }
    back = from_payload(to_payload(tree), torch.device("cpu"))
    assert list(back) == list(tree) and back["plain"][:4] == tree["plain"][:4] and back["mask"][1][1] is None
    for sent, got in (
        *((tree[k], back[k]) for k in ("image", 7, "strided", "empty")),
        (tree["mask"][0], back["mask"][0]),
        (tree["mask"][1][0], back["mask"][1][0]),
        (tree["plain"][4], back["plain"][4]),
    ):
        assert got.dtype == sent.dtype and torch.equal(got, sent) and got.data_ptr() != (sent.data_ptr() or -1)
    assert back["image"].stride() == tree["image"].stride()
    short = cut(tree, 2)
    assert len(short["image"]) == len(short["mask"][0]) == len(short["mask"][1][0]) == len(short[7]) == 2
    assert len(short["empty"]) == 0 and short["plain"] is not None and float(short["plain"][4]) == 1.5
    with pytest.raises(ValueError, match="set is none"):
        to_payload(({1, 2},))


def test_findings_say_who_where_and_by_how_much():
    found = Finding(40, "computation", (2,), ("blue",), 2, (0, 2), 3, 0.015, (2,))
    assert str(found).startswith("step 40: rank 2 on blue computed a micro-batch unlike two other computations")
    assert "1.5e-02" in str(found) and "rank 2 did not repeat" in str(found)
    both = Finding(0, "computation", (0, 1), ("blue", "red"), None, (0, 1))
    assert "rank 0 on blue, rank 1 on red" in str(both) and "no vote decides" in str(both)
    assert "other weights than the majority" in str(Finding(0, "weights", (1,), ("red",), 1))
    assert json.dumps(found.__dict__)
